// Attention of packed rows, forward and backward. packed.py says what the arguments are.

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <vector>

// A span of tokens attends to a prefix, the prompt that its group shares, and causally to itself. One task is one key head of
// all spans of a group, so each key's gradient is summed by one thread, in one order.

// C[i][..] = (SUM ? C[i][..] : 0) + sum over k of a[i * row + k * step] * b[k * wide ..], R rows of V vectors.
template <int R, int V, bool SUM>
static inline void tile(const float* a, int64_t row, int64_t step, const float* b, int64_t wide, float* c, int64_t pitch,
                        int64_t depth) {
  Vector sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = SUM ? load(c + r * pitch + v * LANES) : Vector{};
  for (int64_t k = 0; k < depth; k++) {
    Vector lanes[V];
    for (int v = 0; v < V; v++) lanes[v] = load(b + k * wide + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sum[r][v] += a[r * row + k * step] * lanes[v];
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(c + r * pitch + v * LANES, sum[r][v]);
}

template <int V, bool SUM>
static inline void strip(const float* a, int64_t row, int64_t step, const float* b, int64_t wide, float* c, int64_t pitch,
                         int64_t rows, int64_t depth) {
  constexpr int R = LANES == 16 ? (V == 4 ? 6 : 8) : 4;
  int64_t i = 0;
  for (; i + R <= rows; i += R) tile<R, V, SUM>(a + i * row, row, step, b, wide, c + i * pitch, pitch, depth);
  for (; i + 2 <= rows; i += 2) tile<2, V, SUM>(a + i * row, row, step, b, wide, c + i * pitch, pitch, depth);
  if (i < rows) tile<1, V, SUM>(a + i * row, row, step, b, wide, c + i * pitch, pitch, depth);
}

// The same for any number of rows and of columns, which are a multiple of LANES.
template <bool SUM>
static void matrix(const float* a, int64_t row, int64_t step, const float* b, int64_t wide, float* c, int64_t pitch,
                   int64_t rows, int64_t columns, int64_t depth) {
  constexpr int WIDEST = LANES == 16 ? 4 : 2;
  int64_t at = 0;
  while (at < columns) {
    const int64_t left = (columns - at) / LANES;
    if (LANES == 16 && left >= 4 && left != 5) {
      strip<WIDEST, SUM>(a, row, step, b + at, wide, c + at, pitch, rows, depth);
      at += WIDEST * LANES;
    } else if (LANES == 16 && left >= 3) {
      strip<3, SUM>(a, row, step, b + at, wide, c + at, pitch, rows, depth);
      at += 3 * LANES;
    } else if (left >= 2) {
      strip<2, SUM>(a, row, step, b + at, wide, c + at, pitch, rows, depth);
      at += 2 * LANES;
    } else {
      strip<1, SUM>(a, row, step, b + at, wide, c + at, pitch, rows, depth);
      at += LANES;
    }
  }
}

// Query vectors that share one pass over keys; at least as many as the heads that share a key head.
constexpr int64_t TILE = 3 * LANES;

struct Sizes {
  int64_t heads, key_heads, width, window;
  // distances of tokens in query, key, value and output; heads are one width apart
  int64_t query, key, value, out;
  float scaling;
};

// Buffers of one thread, for spans that see up to `keys` keys.
struct Scratch {
  int64_t keys, width;
  std::vector<float> k, v, dk, dv, scores, slopes, asked, turned, given, given_turned, answer;
  Scratch(int64_t keys, int64_t width, bool backward)
      : keys(keys), width(width), k(keys * width), v(keys * width), scores(keys * TILE), asked(TILE * width),
        turned(TILE * width), answer(TILE * width) {
    if (!backward) return;
    dk.resize(keys * width), dv.resize(keys * width), slopes.resize(keys * TILE);
    given.resize(TILE * width), given_turned.resize(TILE * width);
  }
};

template <typename T>
static inline void widen(const T* from, int64_t stride, float* to, int64_t count, int64_t width) {
  for (int64_t j = 0; j < count; j++)
    for (int64_t x = 0; x < width; x += LANES) store(to + j * width + x, load(from + j * stride + x));
}

template <typename T>
static inline void narrow(const float* from, T* to, int64_t stride, int64_t count, int64_t width) {
  for (int64_t j = 0; j < count; j++)
    for (int64_t x = 0; x < width; x += LANES) store(to + j * stride + x, load(from + j * width + x));
}

// [TILE][width] -> [width][lanes]
static inline void turn(const float* rows, float* columns, int64_t lanes, int64_t width) {
  for (int64_t lane = 0; lane < lanes; lane++)
    for (int64_t x = 0; x < width; x++) columns[x * lanes + lane] = rows[lane * width + x];
}

// One tile of queries: `tokens` of them from `first` of the span on, each with all heads of the group; lanes are token by head.
struct Tile {
  int64_t first, tokens, group, lanes, begin, end;  // sees keys begin to end
  Tile(int64_t first, int64_t tokens, int64_t group, int64_t prefix, int64_t window) : first(first), tokens(tokens), group(group) {
    lanes = (tokens * group + LANES - 1) / LANES * LANES;
    end = prefix + first + tokens;
    begin = window && prefix + first + 1 > window ? prefix + first + 1 - window : 0;
  }
};

// Rows of a tensor [tokens][heads][width] for the lanes of a tile; lanes beyond them are 0.
template <typename T>
static inline void gather(const T* from, int64_t stride, const Tile& t, float* rows, int64_t width) {
  for (int64_t i = 0; i < t.lanes; i++)
    for (int64_t x = 0; x < width; x += LANES)
      store(rows + i * width + x,
            i < t.tokens * t.group ? load(from + (t.first + i / t.group) * stride + i % t.group * width + x) : Vector{});
}

// Scores of a tile: keys by lanes, scaled, minus infinity where a lane does not see a key.
static void score(const Tile& t, const float* keys, const float* turned, float* scores, int64_t prefix, const Sizes& s) {
  matrix<false>(keys + t.begin * s.width, s.width, 1, turned, t.lanes, scores + t.begin * t.lanes, t.lanes, t.end - t.begin,
                t.lanes, s.width);
  for (int64_t v = 0; v < t.lanes; v += LANES) {
    Integers last{};  // the last key that a lane sees
    for (int i = 0; i < LANES; i++) {
      const int64_t token = (v + i) / t.group;
      last[i] = static_cast<int32_t>(prefix + t.first + (token < t.tokens ? token : t.tokens - 1));
    }
    for (int64_t j = t.begin; j < t.end; j++) {
      float* place = scores + j * t.lanes + v;
      const int32_t key = static_cast<int32_t>(j);
      Vector x = load(place) * s.scaling;
      if (j > prefix + t.first || (s.window && j <= prefix + t.first + t.tokens - 1 - s.window)) {
        const Integers hidden = s.window ? (last < key) | (key <= last - static_cast<int32_t>(s.window)) : last < key;
        x = hidden ? Vector{} - 1e30f : x;
      }
      store(place, x);
    }
  }
}

// The tile of queries from `first` on of a span, and its scores.
template <typename T>
static Tile scored(const T* query, const int64_t* span, int64_t first, Scratch& m, const Sizes& s) {
  const int64_t group = s.heads / s.key_heads;
  const Tile t(first, std::min(span[1] - first, TILE / group), group, span[3], s.window);
  gather(query + span[0] * s.query, s.query, t, m.asked.data(), s.width);
  turn(m.asked.data(), m.turned.data(), t.lanes, s.width);
  score(t, m.k.data(), m.turned.data(), m.scores.data(), span[3], s);
  return t;
}

template <typename T>
static void span_forward(const T* query, T* out, float* normalizers, const int64_t* span, Scratch& m, const Sizes& s) {
  const int64_t start = span[0], group = s.heads / s.key_heads;
  for (int64_t first = 0; first < span[1]; first += TILE / group) {
    const Tile t = scored(query, span, first, m, s);
    float* scores = m.scores.data();
    float inverse[TILE];
    for (int64_t v = 0; v < t.lanes; v += LANES) {
      Vector top = Vector{} - 1e30f, sum{};
      for (int64_t j = t.begin; j < t.end; j++) {
        const Vector x = load(scores + j * t.lanes + v);
        top = x > top ? x : top;
      }
      for (int64_t j = t.begin; j < t.end; j++) {
        const Vector x = load(scores + j * t.lanes + v), p = x > -1e29f ? exponential(x - top) : Vector{};
        store(scores + j * t.lanes + v, p);
        sum += p;
      }
      store(inverse + v, 1.0f / sum);
      for (int i = 0; i < LANES && v + i < t.tokens * group; i++)
        normalizers[(start + first + (v + i) / group) * s.heads + (v + i) % group] = top[i] + std::log(sum[i]);
    }
    matrix<false>(scores + t.begin * t.lanes, 1, t.lanes, m.v.data() + t.begin * s.width, s.width, m.answer.data(), s.width,
                  t.tokens * group, s.width, t.end - t.begin);
    for (int64_t i = 0; i < t.tokens * group; i++)
      for (int64_t x = 0; x < s.width; x += LANES)
        store(out + (start + first + i / group) * s.out + i % group * s.width + x,
              load(m.answer.data() + i * s.width + x) * inverse[i]);
  }
}

template <typename T>
static void span_backward(const T* query, const T* out, const T* dout, const float* normalizers, T* dquery, const int64_t* span,
                          Scratch& m, const Sizes& s) {
  const int64_t start = span[0], group = s.heads / s.key_heads;
  for (int64_t first = 0; first < span[1]; first += TILE / group) {
    const Tile t = scored(query, span, first, m, s);
    gather(dout + start * s.out, s.out, t, m.given.data(), s.width);
    turn(m.given.data(), m.given_turned.data(), t.lanes, s.width);
    float normalizer[TILE] = {}, mean[TILE] = {};
    for (int64_t i = 0; i < t.tokens * group; i++) {
      const int64_t token = start + first + i / group, place = token * s.out + i % group * s.width;
      Vector dot{};
      for (int64_t x = 0; x < s.width; x += LANES) dot += load(m.given.data() + i * s.width + x) * load(out + place + x);
      mean[i] = total(dot);
      normalizer[i] = normalizers[token * s.heads + i % group];
    }
    const int64_t keys = t.end - t.begin;
    float *scores = m.scores.data(), *slopes = m.slopes.data();
    matrix<false>(m.v.data() + t.begin * s.width, s.width, 1, m.given_turned.data(), t.lanes, slopes + t.begin * t.lanes, t.lanes,
                  keys, t.lanes, s.width);
    for (int64_t v = 0; v < t.lanes; v += LANES) {
      const Vector level = load(normalizer + v), centre = load(mean + v);
      for (int64_t j = t.begin; j < t.end; j++) {
        const int64_t at = j * t.lanes + v;
        const Vector x = load(scores + at) - level, p = exponential(x < 0.0f ? x : Vector{});
        const Vector seen = load(scores + at) > -1e29f ? p : Vector{};
        store(scores + at, seen);
        store(slopes + at, seen * (load(slopes + at) - centre) * s.scaling);
      }
    }
    const int64_t lanes = t.tokens * group;
    matrix<true>(scores + t.begin * t.lanes, t.lanes, 1, m.given.data(), s.width, m.dv.data() + t.begin * s.width, s.width, keys,
                 s.width, lanes);
    matrix<true>(slopes + t.begin * t.lanes, t.lanes, 1, m.asked.data(), s.width, m.dk.data() + t.begin * s.width, s.width, keys,
                 s.width, lanes);
    matrix<false>(slopes + t.begin * t.lanes, 1, t.lanes, m.k.data() + t.begin * s.width, s.width, m.answer.data(), s.width, lanes,
                  s.width, keys);
    for (int64_t i = 0; i < lanes; i++)
      for (int64_t x = 0; x < s.width; x += LANES)
        store(dquery + ((start + first + i / group) * s.heads + i % group) * s.width + x, load(m.answer.data() + i * s.width + x));
  }
}

// Spans [n][4] are start, count, start of the prefix, its length; groups [n + 1] are where each group's spans begin. Spans of a
// group have one prefix, or none (the prefix itself, which comes first).
static int64_t most_keys(const int64_t* spans, int64_t count) {
  int64_t most = 1;
  for (int64_t i = 0; i < count; i++) most = std::max(most, spans[4 * i + 1] + spans[4 * i + 3]);
  return most;
}

template <typename T>
static void packed_forward(const T* query, const T* key, const T* value, T* out, float* normalizers, const int64_t* spans,
                           const int64_t* groups, int64_t group_count, const Sizes& s, int threads) {
  const int64_t most = most_keys(spans, groups[group_count]), share = s.heads / s.key_heads;
#pragma omp parallel num_threads(threads)
  {
    Scratch m(most, s.width, false);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < group_count * s.key_heads; task++) {
      const int64_t group = task / s.key_heads, head = task % s.key_heads, at = head * s.width, heads = head * share;
      int64_t held = -1;  // start of the prefix, or of the span that is the next one's, whose keys open the buffers
      for (int64_t i = groups[group]; i < groups[group + 1]; i++) {
        const int64_t* span = spans + 4 * i;
        if (span[3] && span[2] != held) {
          widen(key + span[2] * s.key + at, s.key, m.k.data(), span[3], s.width);
          widen(value + span[2] * s.value + at, s.value, m.v.data(), span[3], s.width);
        }
        held = span[3] ? span[2] : span[0];
        widen(key + span[0] * s.key + at, s.key, m.k.data() + span[3] * s.width, span[1], s.width);
        widen(value + span[0] * s.value + at, s.value, m.v.data() + span[3] * s.width, span[1], s.width);
        span_forward(query + heads * s.width, out + heads * s.width, normalizers + heads, span, m, s);
      }
    }
  }
}

// The gradients [tokens][heads][width] are dense.
template <typename T>
static void packed_backward(const T* query, const T* key, const T* value, const T* out, const T* dout, const float* normalizers,
                            T* dquery, T* dkey, T* dvalue, const int64_t* spans, const int64_t* groups, int64_t group_count,
                            const Sizes& s, int threads) {
  const int64_t most = most_keys(spans, groups[group_count]), share = s.heads / s.key_heads, pitch = s.key_heads * s.width;
#pragma omp parallel num_threads(threads)
  {
    Scratch m(most, s.width, true);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < group_count * s.key_heads; task++) {
      const int64_t group = task / s.key_heads, head = task % s.key_heads, at = head * s.width, heads = head * share;
      // From the last span to the first: the prefix's own span is the first, and then has the sums of all others.
      int64_t held = -1;
      for (int64_t i = groups[group + 1] - 1; i >= groups[group]; i--) {
        const int64_t *span = spans + 4 * i, start = span[0], count = span[1], prefix = span[3];
        float *dk = m.dk.data(), *dv = m.dv.data();
        if (prefix && span[2] != held) {
          widen(key + span[2] * s.key + at, s.key, m.k.data(), prefix, s.width);
          widen(value + span[2] * s.value + at, s.value, m.v.data(), prefix, s.width);
          for (int64_t x = 0; x < prefix * s.width; x++) dk[x] = dv[x] = 0.0f;
          held = span[2];
        }
        widen(key + start * s.key + at, s.key, m.k.data() + prefix * s.width, count, s.width);
        widen(value + start * s.value + at, s.value, m.v.data() + prefix * s.width, count, s.width);
        const bool owner = !prefix && start == held;  // its keys' sums are in the buffers
        if (!owner)
          for (int64_t x = prefix * s.width; x < (prefix + count) * s.width; x++) dk[x] = dv[x] = 0.0f;
        span_backward(query + heads * s.width, out + heads * s.width, dout + heads * s.width, normalizers + heads,
                      dquery + heads * s.width, span, m, s);
        narrow(dk + prefix * s.width, dkey + start * pitch + at, pitch, count, s.width);
        narrow(dv + prefix * s.width, dvalue + start * pitch + at, pitch, count, s.width);
      }
    }
  }
}

#define PACKED_ATTENTION(T, NAME)                                                                                         \
  void packed_forward_##NAME(const T* query, const T* key, const T* value, T* out, float* normalizers,                    \
                             const int64_t* spans, const int64_t* groups, int64_t count, const Sizes* sizes,              \
                             int threads) {                                                                               \
    packed_forward(query, key, value, out, normalizers, spans, groups, count, *sizes, threads);                           \
  }                                                                                                                       \
  void packed_backward_##NAME(const T* query, const T* key, const T* value, const T* out, const T* dout,                  \
                              const float* normalizers, T* dquery, T* dkey, T* dvalue, const int64_t* spans,              \
                              const int64_t* groups, int64_t count, const Sizes* sizes, int threads) {                    \
    packed_backward(query, key, value, out, dout, normalizers, dquery, dkey, dvalue, spans, groups, count, *sizes,        \
                    threads);                                                                                             \
  }

extern "C" {
PACKED_ATTENTION(float, float32)
#if HAS_BFLOAT16
PACKED_ATTENTION(BFloat16, bfloat16)
#endif
}
