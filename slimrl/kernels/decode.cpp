// The parts of a decode step that read much memory for little arithmetic. native.py compiles them for the processor they
// run on; decode.py says what the arguments are.

#include "products.h"
#include "vectors.h"

#include <algorithm>
#include <numeric>
#include <vector>

// The product of few rows: every weight is read once, in the order in which it lies in memory, and met there by all rows,
// which are the lanes of a vector.

// Inputs of a row that one step of the sum takes: bfloat16 processors multiply pairs and add both products.
template <typename T>
constexpr int64_t PAIR = 4 / sizeof(T);

static inline Vector multiplied(Vector sum, const float* weight, Vector lanes) { return sum + *weight * lanes; }
#if HAS_BFLOAT16
static inline Vector multiplied(Vector sum, const BFloat16* weight, Vector lanes) {
  int32_t pair;
  __builtin_memcpy(&pair, weight, 4);
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)lanes);
}
#endif

// Adds to the sums of R outputs of V vectors of rows the products of `inputs` numbers; x is [inputs / PAIR][V * LANES].
template <typename T, int R, int V>
[[gnu::always_inline]] static inline void accumulate(Vector (&sum)[R][V], const T* weight, const float* x, int64_t inputs) {
  constexpr int64_t STEP = PAIR<T>, AHEAD = 64 / sizeof(T);
  for (int64_t first = 0; first < inputs; first += AHEAD) {
    for (int r = 0; r < R; r++) {
      // R streams of weights at once are more than the processor foresees: the same line of the next R outputs, too.
      __builtin_prefetch(weight + r * inputs + first + 3 * AHEAD, 0, 3);
      __builtin_prefetch(weight + (r + R) * inputs + first, 0, 2);
    }
    const int64_t end = first + AHEAD < inputs ? first + AHEAD : inputs;
    for (int64_t k = first; k < end; k += STEP) {
      Vector lanes[V];
      for (int v = 0; v < V; v++) lanes[v] = load(x + (k / STEP * V + v) * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = multiplied(sum[r][v], weight + r * inputs + k, lanes[v]);
    }
  }
}

// Numbers of all rows in tiles of up to MOST vectors: [tile][inputs / PAIR][vectors of the tile * LANES].
template <typename T>
struct Packed {
  const float* numbers;
  int64_t inputs;

  const float* tile(int row) const { return numbers + row * (inputs / PAIR<T>); }
};

// R outputs of up to V vectors of rows from `row` on; the sums stay in registers until the last input.
template <typename T, typename Y, int R, int V>
static inline void block(const Part<T, Y>& part, int64_t output, const Packed<T>& x, const Packed<T>& low, int row, int rows) {
  const int64_t outputs = part.outputs;
  Y* const y = part.y + row * outputs + output;
  rows -= row;
  Vector sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = Vector{} + (part.bias ? number(part.bias[output + r]) : 0.0f);
  accumulate<T, R, V>(sum, part.weight + output * x.inputs, x.tile(row), x.inputs);
  if (low.inputs) accumulate<T, R, V>(sum, part.factor + output * low.inputs, low.tile(row), low.inputs);
  for (int v = 0; v < V; v++) {
    if constexpr (2 * R == LANES) {
      Vector two_rows[R];
      for (int r = 0; r < R; r++) two_rows[r] = sum[r][v];
      transpose<R>(two_rows);
      for (int r = 0; r < R; r++) {
        Y values[LANES];
        store(values, two_rows[r]);
        const int at = v * LANES + 2 * r;
        for (int half = 0; half < 2; half++)
          if (at + half < rows) __builtin_memcpy(y + (at + half) * outputs, values + half * R, R * sizeof(Y));
      }
    } else {
      for (int lane = 0; lane < LANES && v * LANES + lane < rows; lane++)
        for (int r = 0; r < R; r++) put(y + (v * LANES + lane) * outputs + r, sum[r][v][lane]);
    }
  }
}

// R outputs of all rows.
template <typename T, typename Y, int R>
static void outputs_of(const Part<T, Y>& part, int64_t output, const Packed<T>& x, const Packed<T>& low, int rows) {
  for (int row = 0; row < rows; row += MOST * LANES) {
    const int left = rows - row;
    const auto tile = left <= LANES ? block<T, Y, R, 1> : left <= 2 * LANES ? block<T, Y, R, 2> : block<T, Y, R, MOST>;
    tile(part, output, x, low, row, rows);
  }
}

// Bytes of rows that are packed at once: they stay in a core's own cache while all weights pass.
constexpr int64_t PANEL = 1 << 19;

// Up to LANES rows of x, which are `stride` apart, and up to LANES steps of each -> one vector of rows for each step.
template <typename T>
static inline void pack(const T* x, int64_t stride, int64_t rows, int64_t steps, float* scratch, int64_t width) {
  Vector part[LANES] = {};
  const int64_t bytes = std::min<int64_t>(steps, LANES) * 4;
  for (int row = 0; row < std::min<int64_t>(rows, LANES); row++) __builtin_memcpy(part + row, x + row * stride, bytes);
  transpose<LANES>(part);
  for (int step = 0; step < std::min<int64_t>(steps, LANES); step++) store(scratch + step * width, part[step]);
}

// Rows of x [rows][inputs] as `Packed` has them, by all threads of a parallel region.
template <typename T>
static void pack_all(const T* x, int64_t inputs, int rows, float* scratch) {
  const int64_t steps = inputs / PAIR<T>;
#pragma omp for collapse(2) schedule(static) nowait
  for (int row = 0; row < rows; row += LANES)
    for (int64_t k = 0; k < steps; k += LANES) {
      const int first = row / (MOST * LANES) * (MOST * LANES), vectors = std::min((rows - first + LANES - 1) / LANES, MOST);
      pack(x + row * inputs + k * PAIR<T>, inputs, rows - row, steps - k,
           scratch + first * steps + k * vectors * LANES + row - first, vectors * LANES);
    }
}

template <typename T, typename Y>
static void products(const Part<T, Y>* parts, int64_t count, const T* x, int64_t inputs, int64_t all_rows, int threads) {
  const int64_t tile = MOST * LANES, needed = (all_rows + LANES - 1) / LANES * LANES;
  const int64_t panel = std::min(std::max<int64_t>(PANEL / (inputs * sizeof(T)) / tile, 1) * tile, needed);
  int64_t width = inputs;  // numbers of a row that are packed
  for (int64_t i = 0; i < count; i++) width += parts[i].rank;
  const std::unique_ptr<float[]> packed(new float[panel * (width / PAIR<T>)]);
  float* const scratch = packed.get();
#pragma omp parallel num_threads(threads)
  for (int64_t begin = 0; begin < all_rows; begin += panel) {
    const int rows = static_cast<int>(std::min(panel, all_rows - begin));
    int64_t place = panel * (inputs / PAIR<T>);
    pack_all(x + begin * inputs, inputs, rows, scratch);
    for (int64_t i = 0; i < count; i++) {
      pack_all(parts[i].low + begin * parts[i].rank, parts[i].rank, rows, scratch + place);
      place += panel * (parts[i].rank / PAIR<T>);
    }
#pragma omp barrier
    place = panel * (inputs / PAIR<T>);
    for (int64_t i = 0; i < count; i++) {
      Part<T, Y> p = parts[i];
      p.y += begin * p.outputs;
      const Packed<T> all = {scratch, inputs}, low = {scratch + place, p.rank};
      place += panel * (p.rank / PAIR<T>);
      const int64_t whole = p.outputs / OUTPUTS, left = p.outputs % OUTPUTS;
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < whole + left; j++) {
        const int64_t n = j < whole ? j * OUTPUTS : whole * OUTPUTS + j - whole;
        const auto some = j < whole ? outputs_of<T, Y, OUTPUTS> : outputs_of<T, Y, 1>;
        some(p, n, all, low, rows);
      }
    }
#pragma omp barrier
  }
}

// The attention of a decode step: a query's keys are its prompt's, which its group shares, and its own in a ring of columns.

// Lane i of the result is the sum of the lanes of part[i]; the parts are used up. Each round adds neighbours at a distance of
// APART lanes and keeps the sums of two vectors in one.
template <int APART>
static inline Vector sums_of(Vector* part) {
  if constexpr (APART == LANES) {
    return part[0];
  } else {
    Integers near{}, far{};
    for (int i = 0; i < LANES; i++) {
      near[i] = (i & ~APART) + (i & APART ? LANES : 0);
      far[i] = near[i] | APART;
    }
#pragma GCC unroll 8
    for (int i = 0; i < LANES / APART; i += 2)
      part[i / 2] = __builtin_shuffle(part[i], part[i + 1], near) + __builtin_shuffle(part[i], part[i + 1], far);
    return sums_of<2 * APART>(part);
  }
}

// Rows that share a prompt are scored together. Every number of a result is summed in one order, whichever rows share a tile:
// a score over the width, an average over the keys.

// Queries of a tile, and its vectors of keys or of values.
constexpr int HEIGHT = 6, WIDE = LANES == 16 ? 4 : 2;
// Queries that pass over a prompt together, and keys whose values stay in a core's own cache meanwhile.
constexpr int64_t SHARED = 4 * HEIGHT, NEAR = 128;
constexpr float HIDDEN = -1e30f;

// The scores of V blocks of a prompt's keys, which are [width / PAIR][LANES][PAIR] each.
template <typename T, int V, int R>
static inline void score_blocks(const T* query, int64_t queries, const T* keys, float* scores, int64_t stride, int64_t width,
                                float scaling) {
  const int64_t steps = width / PAIR<T>;
  int64_t first = 0;
  for (; first + R <= queries; first += R) {
    const T* asked = query + first * width;
    Vector sum[R][V] = {};
    for (int64_t k = 0; k < steps; k++) {
      Vector lanes[V];
      for (int v = 0; v < V; v++) lanes[v] = load(reinterpret_cast<const float*>(keys + (v * steps + k) * LANES * PAIR<T>));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = multiplied(sum[r][v], asked + r * width + k * PAIR<T>, lanes[v]);
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) store(scores + (first + r) * stride + v * LANES, sum[r][v] * scaling);
  }
  if constexpr (R > 1)
    if (first < queries)
      score_blocks<T, V, R - 1>(query + first * width, queries - first, keys, scores + first * stride, stride, width, scaling);
}

template <typename T, int V>
static void score_prompt(const T* query, int64_t queries, const T* keys, int64_t blocks, float* scores, int64_t stride,
                         int64_t width, float scaling) {
  int64_t block = 0;
  for (; block + V <= blocks; block += V)
    score_blocks<T, V, HEIGHT>(query, queries, keys + block * LANES * width, scores + block * LANES, stride, width, scaling);
  if constexpr (V > 1)
    if (block < blocks)
      score_prompt<T, V / 2>(query, queries, keys + block * LANES * width, blocks - block, scores + block * LANES, stride,
                             width, scaling);
}

// The scores of the first `count` of LANES keys, and behind them, if there are fewer, those of the last again.
template <typename T, bool WHOLE>
static inline void score(const T* query, int64_t queries, const T* keys, float* scores, int64_t stride, int64_t width,
                         int64_t count, float scaling) {
  for (int64_t q = 0; q < queries; q++) {
    Vector part[LANES] = {};
    for (int64_t x = 0; x < width; x += LANES) {
      const Vector asked = load(query + q * width + x);
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; lane++)
        part[lane] += asked * load(keys + (WHOLE || lane < count ? lane : count - 1) * width + x);
    }
    store(scores + q * stride, sums_of<1>(part) * scaling);
  }
}

// Consecutive keys of a row's own.
template <typename T>
struct Segment {
  const T *keys, *values;
  int64_t count;
  const T* later;  // keys of the next row, asked for while values are read
};

template <typename T>
static void score_own(const T* query, int64_t queries, const Segment<T>& segment, float* scores, int64_t stride, int64_t width,
                      float scaling) {
  const int64_t whole = segment.count / LANES * LANES;
  for (int64_t j = 0; j < whole; j += LANES) {
    for (int64_t x = 0; x < LANES * width; x += 64 / sizeof(T)) __builtin_prefetch(segment.values + j * width + x, 0, 2);
    score<T, true>(query, queries, segment.keys + j * width, scores + j, stride, width, LANES, scaling);
  }
  if (whole < segment.count)
    score<T, false>(query, queries, segment.keys + whole * width, scores + whole, stride, width, segment.count - whole, scaling);
}

// Adds X vectors of `count` values under the weights of the queries to their sums.
template <typename T, int X, int R>
static inline void add_tile(const float* weights, int64_t queries, int64_t stride, const T* values, const T* later,
                            int64_t count, float* sums, int64_t width) {
  int64_t first = 0;
  for (; first + R <= queries; first += R, later = nullptr) {
    const float* own = weights + first * stride;
    float* place = sums + first * width;
    Vector sum[R][X];
    for (int r = 0; r < R; r++)
      for (int x = 0; x < X; x++) sum[r][x] = load(place + r * width + x * LANES);
    for (int64_t j = 0; j < count; j++) {
      Vector value[X];
      for (int x = 0; x < X; x++) {
        value[x] = load(values + j * width + x * LANES);
        if (later) __builtin_prefetch(later + j * width + x * LANES, 0, 2);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        for (int x = 0; x < X; x++) sum[r][x] += own[r * stride + j] * value[x];
    }
    for (int r = 0; r < R; r++)
      for (int x = 0; x < X; x++) store(place + r * width + x * LANES, sum[r][x]);
  }
  if constexpr (R > 1)
    if (first < queries)
      add_tile<T, X, R - 1>(weights + first * stride, queries - first, stride, values, later, count, sums + first * width, width);
}

template <typename T, int X>
static void add_values(const float* weights, int64_t queries, int64_t stride, const Segment<T>& segment, float* sums,
                       int64_t width, int64_t from) {
  int64_t x = from;
  for (; x + X * LANES <= width; x += X * LANES)
    for (int64_t j = 0; j < segment.count; j += NEAR) {
      const int64_t place = j * width + x;
      add_tile<T, X, HEIGHT>(weights + j, queries, stride, segment.values + place, segment.later ? segment.later + place : nullptr,
                             std::min(NEAR, segment.count - j), sums + x, width);
    }
  if constexpr (X > 1)
    if (x < width) add_values<T, X / 2>(weights, queries, stride, segment, sums, width, x);
}

static inline Vector swapped(Vector v, int distance) {
  Integers from;
  for (int i = 0; i < LANES; i++) from[i] = i ^ distance;
  return __builtin_shuffle(v, from);
}

// Scores become weights, hidden ones 0 -> the sum of the weights.
static float normalize(float* scores, int64_t places) {
  for (int64_t j = places; j % LANES; j++) scores[j] = HIDDEN;
  Vector most = load(scores);
  for (int64_t j = LANES; j < places; j += LANES) most = load(scores + j) > most ? load(scores + j) : most;
#pragma GCC unroll 4
  for (int apart = LANES / 2; apart; apart /= 2) most = swapped(most, apart) > most ? swapped(most, apart) : most;
  Vector sum = {};
  for (int64_t j = 0; j < places; j += LANES) {
    const Vector found = load(scores + j), weight = found == HIDDEN ? Vector{} : exponential(found - most);
    store(scores + j, weight);
    sum += weight;
  }
#pragma GCC unroll 4
  for (int apart = LANES / 2; apart; apart /= 2) sum += swapped(sum, apart);
  return sum[0];
}

// What a decode step reads and writes; decode.py says what the arrays are.
template <typename T>
struct Step {
  const T *query, *key, *value;
  T *keys, *values;
  const T *prompt_keys, *prompt_values;
  const int64_t *prompt, *lengths, *ages;
  T* out;
  int64_t key_heads, columns, prompt_width, width, time, window, group;
  float scaling;

  // The first place of its prompt that a row sees.
  int64_t first(int64_t row) const {
    const int64_t position = lengths[row] + ages[row];
    return std::min(window && position >= window ? position - window + 1 : 0, lengths[row]);
  }
  int64_t own(int64_t row) const { return window && ages[row] >= window ? window : ages[row] + 1; }
};

// Buffers of one thread, for up to SHARED queries or those of one row.
template <typename T>
struct Room {
  int64_t stride;
  std::unique_ptr<float[]> scores, sums, totals;
  std::unique_ptr<T[]> query;
  Room(int64_t queries, int64_t stride, int64_t width)
      : stride(stride), scores(new float[queries * stride]), sums(new float[queries * width]), totals(new float[queries]),
        query(new T[queries * width]) {}
};

// A row's own keys, older ones first.
template <typename T>
struct Own {
  Segment<T> segments[2];
  Own(const Step<T>& s, int64_t row, int64_t next, int64_t head) {
    const int64_t own = s.own(row), now = s.time % s.columns, recent = std::min(own, now + 1), wrapped = own - recent;
    const int64_t start = (row * s.key_heads + head) * s.columns, step = (next - row) * s.key_heads * s.columns * s.width;
    const int64_t old = (start + s.columns - wrapped) * s.width, fresh = (start + now + 1 - recent) * s.width;
    segments[0] = {s.keys + old, s.values + old, wrapped, s.keys + old + step};
    segments[1] = {s.keys + fresh, s.values + fresh, recent, s.keys + fresh + step};
  }
};

// Stores the new keys and values of some rows, gathers their queries, and finds the first block of the prompt that one sees.
template <typename T>
static int64_t prepare(const Step<T>& s, const int64_t* rows, int64_t count, int64_t head, T* query) {
  const int64_t width = s.width, size = s.group * width;
  int64_t begin = s.lengths[rows[0]];
  for (int64_t i = 0; i < count; i++) {
    const int64_t place = rows[i] * s.key_heads + head, now = (place * s.columns + s.time % s.columns) * width;
    std::copy_n(s.query + place * size, size, query + i * size);
    std::copy_n(s.key + place * width, width, s.keys + now);
    std::copy_n(s.value + place * width, width, s.values + now);
    begin = std::min(begin, s.first(rows[i]) / LANES * LANES);
  }
  return begin;
}

// One key head of rows that have one prompt, of one length.
template <typename T>
static void attend(const Step<T>& s, const int64_t* rows, int64_t count, const int64_t* end, int64_t head, const Room<T>& room) {
  const int64_t width = s.width, group = s.group, stride = room.stride, length = s.lengths[rows[0]];
  const int64_t begin = prepare(s, rows, count, head, room.query.get()), seen = length - begin;
  const int64_t blocks = (seen + LANES - 1) / LANES, given = blocks * LANES, shared = s.prompt[rows[0]] * s.key_heads + head;
  const int64_t pitch = (s.prompt_width + LANES - 1) / LANES * LANES;
  score_prompt<T, WIDE>(room.query.get(), count * group, s.prompt_keys + (shared * pitch + begin) * width, blocks,
                        room.scores.get(), stride, width, s.scaling);
  std::fill_n(room.sums.get(), count * group * width, 0.0f);
  for (int64_t i = 0; i < count; i++) {
    float* scores = room.scores.get() + i * group * stride;
    const Own<T> own(s, rows[i], rows + i + 1 < end ? rows[i + 1] : rows[i], head);
    int64_t place = given;
    for (const Segment<T>& segment : own.segments) {
      score_own(room.query.get() + i * group * width, group, segment, scores + place, stride, width, s.scaling);
      place += segment.count;
    }
    for (int64_t g = 0; g < group; g++) {
      std::fill_n(scores + g * stride, std::max<int64_t>(s.first(rows[i]) - begin, 0), HIDDEN);
      std::fill(scores + g * stride + seen, scores + g * stride + given, HIDDEN);
      room.totals[i * group + g] = normalize(scores + g * stride, place);
    }
    place = given;
    for (const Segment<T>& segment : own.segments) {
      add_values<T, WIDE>(scores + place, group, stride, segment, room.sums.get() + i * group * width, width, 0);
      place += segment.count;
    }
  }
  const Segment<T> prompt{nullptr, s.prompt_values + (shared * s.prompt_width + begin) * width, seen, nullptr};
  add_values<T, WIDE>(room.scores.get(), count * group, stride, prompt, room.sums.get(), width, 0);
  for (int64_t i = 0; i < count; i++) {
    T* out = s.out + (rows[i] * s.key_heads + head) * group * width;
    const float* sums = room.sums.get() + i * group * width;
    for (int64_t g = 0; g < group; g++)
      for (int64_t x = g * width; x < (g + 1) * width; x += LANES) store(out + x, load(sums + x) / room.totals[i * group + g]);
  }
}

// Rows in an order in which those of one prompt follow each other, and where each run of rows that go together begins.
template <typename T>
static std::vector<int64_t> arrange(const Step<T>& s, std::vector<int64_t>& order, int64_t most) {
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int64_t a, int64_t b) {
    return s.prompt[a] != s.prompt[b] ? s.prompt[a] < s.prompt[b] : s.lengths[a] < s.lengths[b];
  };
  std::stable_sort(order.begin(), order.end(), before);
  std::vector<int64_t> runs;
  const int64_t rows = order.size();
  for (int64_t first = 0, end = 0; first < rows; first = end) {
    while (end < rows && !before(order[first], order[end])) end++;
    const int64_t parts = (end - first + most - 1) / most;
    for (int64_t part = 0; part < parts; part++) runs.push_back(first + (end - first) * part / parts);
  }
  runs.push_back(rows);
  return runs;
}

template <typename T>
static void attention(const Step<T>& s, int64_t rows, int threads) {
  // so many rows that there is work for all threads
  const int64_t most = std::max<int64_t>(std::min(SHARED / s.group, rows * s.key_heads / (2 * threads)), 1);
  std::vector<int64_t> order(rows);
  const std::vector<int64_t> runs = arrange(s, order, most);
  const int64_t count = runs.size() - 1, chunk = std::clamp<int64_t>(count * s.key_heads / (8 * threads), 1, 8);
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; row++) longest = std::max(longest, s.lengths[row] + s.own(row));
#pragma omp parallel num_threads(threads)
  {
    const Room<T> room(std::max(SHARED, s.group), longest + 3 * LANES, s.width);
#pragma omp for schedule(dynamic, chunk)
    for (int64_t task = 0; task < count * s.key_heads; task++) {
      // a head's keys of a prompt stay in the processor's cache
      const int64_t run = task % count, head = task / count;
      attend(s, order.data() + runs[run], runs[run + 1] - runs[run], order.data() + rows, head, room);
    }
  }
}

#define DECODE(T, NAME)                                                                                                  \
  void decode_attention_##NAME(const T* query, const T* key, const T* value, T* keys, T* values, const T* prompt_keys,   \
                               const T* prompt_values, const int64_t* prompt, const int64_t* lengths,                    \
                               const int64_t* ages, T* out, int64_t rows, int64_t key_heads, int64_t columns,            \
                               int64_t prompt_width, int64_t width, int64_t time, int64_t window, int group,             \
                               float scaling, int threads) {                                                             \
    attention<T>({query, key, value, keys, values, prompt_keys, prompt_values, prompt, lengths, ages, out, key_heads,    \
                  columns, prompt_width, width, time, window, group, scaling}, rows, threads);                           \
  }
#define PRODUCTS(T, Y, NAME)                                                                                             \
  void products_##NAME(const Part<T, Y>* parts, int64_t count, const T* x, int64_t inputs, int64_t rows, int threads) {  \
    products(parts, count, x, inputs, rows, threads);                                                                    \
  }

extern "C" {
int lanes = LANES, has_bfloat16 = HAS_BFLOAT16;
PRODUCTS(float, float, float32)
DECODE(float, float32)
#if HAS_BFLOAT16
PRODUCTS(BFloat16, BFloat16, bfloat16)
PRODUCTS(BFloat16, float, widened_bfloat16)
DECODE(BFloat16, bfloat16)
#endif
}
