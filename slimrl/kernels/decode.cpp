// The parts of a decode step that read much memory for little arithmetic. native.py compiles them for the processor they
// run on, and says what the arguments are.

#include "vectors.h"

#include <algorithm>

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

// R outputs of up to V vectors of rows. x is [inputs / PAIR][V * LANES], the sums stay in registers until the last input.
template <typename T, typename Y, int R, int V>
static inline void block(const T* weight, const float* x, const T* bias, Y* y, int64_t outputs, int64_t inputs, int rows) {
  constexpr int64_t STEP = PAIR<T>, AHEAD = 64 / sizeof(T);
  Vector sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = Vector{} + (bias ? number(bias[r]) : 0.0f);
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
  for (int v = 0; v < V; v++) {
    if constexpr (2 * R == LANES) {
      Vector two_rows[R];
      for (int r = 0; r < R; r++) two_rows[r] = sum[r][v];
      transpose<R>(two_rows);
      for (int r = 0; r < R; r++) {
        Y values[LANES];
        store(values, two_rows[r]);
        const int row = v * LANES + 2 * r;
        for (int half = 0; half < 2; half++)
          if (row + half < rows) __builtin_memcpy(y + (row + half) * outputs, values + half * R, R * sizeof(Y));
      }
    } else {
      for (int lane = 0; lane < LANES && v * LANES + lane < rows; lane++)
        for (int r = 0; r < R; r++) put(y + (v * LANES + lane) * outputs + r, sum[r][v][lane]);
    }
  }
}

// R outputs of all rows, which go in tiles of up to MOST vectors; scratch is [tile][inputs / PAIR][vectors of the tile * LANES].
template <typename T, typename Y, int R>
static void outputs_of(const T* weight, const float* scratch, const T* bias, Y* y, int64_t outputs, int64_t inputs, int rows) {
  for (int row = 0; row < rows; row += MOST * LANES) {
    const int left = rows - row;
    const auto tile = left <= LANES ? block<T, Y, R, 1> : left <= 2 * LANES ? block<T, Y, R, 2> : block<T, Y, R, MOST>;
    tile(weight, scratch + row * (inputs / PAIR<T>), bias, y + row * outputs, outputs, inputs, left);
  }
}

// One of the products of the same rows.
template <typename T, typename Y>
struct Part {
  const T *weight, *bias;
  Y* y;
  int64_t outputs;
};

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

template <typename T, typename Y>
static void products(const Part<T, Y>* parts, int64_t count, const T* x, int64_t inputs, int64_t all_rows, int threads) {
  const int64_t steps = inputs / PAIR<T>, tile = MOST * LANES, needed = (all_rows + LANES - 1) / LANES * LANES;
  const int64_t panel = std::min(std::max<int64_t>(PANEL / (inputs * sizeof(T)) / tile, 1) * tile, needed);
  const std::unique_ptr<float[]> packed(new float[panel * steps]);
  float* const scratch = packed.get();
#pragma omp parallel num_threads(threads)
  for (int64_t begin = 0; begin < all_rows; begin += panel) {
    const int rows = static_cast<int>(std::min(panel, all_rows - begin));
#pragma omp for collapse(2) schedule(static)
    for (int row = 0; row < rows; row += LANES)
      for (int64_t k = 0; k < steps; k += LANES) {
        const int first = row / tile * tile, vectors = std::min((rows - first + LANES - 1) / LANES, MOST);
        pack(x + (begin + row) * inputs + k * PAIR<T>, inputs, rows - row, steps - k,
             scratch + first * steps + k * vectors * LANES + row - first, vectors * LANES);
      }
    for (int64_t i = 0; i < count; i++) {
      const Part<T, Y> p = parts[i];
      const int64_t whole = p.outputs / OUTPUTS, left = p.outputs % OUTPUTS;
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < whole + left; j++) {
        const int64_t n = j < whole ? j * OUTPUTS : whole * OUTPUTS + j - whole;
        const auto some = j < whole ? outputs_of<T, Y, OUTPUTS> : outputs_of<T, Y, 1>;
        const T* bias = p.bias ? p.bias + n : nullptr;
        some(p.weight + n * inputs, scratch, bias, p.y + begin * p.outputs + n, p.outputs, inputs, rows);
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

template <typename T>
struct Segment {
  const T *keys, *values;
  int64_t count;
  const T* later;  // keys of the next task, asked for while values are read
};

// What X vectors of the values from `first` on average to under the weights of G heads.
template <typename T, int G, int X>
static inline void average(const Segment<T>* segments, const float* weights, const float* sums, T* out, int64_t stride,
                           int64_t width, int64_t first) {
  Vector sum[G][X] = {};
  for (int i = 0; i < 3; i++) {
    const Segment<T> segment = segments[i];
    for (int64_t j = 0; j < segment.count; j++)
      for (int x = 0; x < X; x++) {
        const int64_t place = j * width + first + x * LANES;
        __builtin_prefetch(segment.later + place, 0, 2);
        const Vector value = load(segment.values + place);
        for (int g = 0; g < G; g++) sum[g][x] += weights[g * stride + j] * value;
      }
    weights += segment.count;
  }
  for (int g = 0; g < G; g++)
    for (int x = 0; x < X; x++) store(out + g * width + first + x * LANES, sum[g][x] / sums[g]);
}

// The scores of the first `count` of LANES keys, and behind them, if there are fewer, those of the last again.
template <typename T, int G, bool WHOLE>
static inline void score(const T* query, const T* keys, float* scores, int64_t stride, int64_t width, int64_t count,
                         float scaling) {
  for (int g = 0; g < G; g++) {
    Vector part[LANES] = {};
    for (int64_t x = 0; x < width; x += LANES) {
      const Vector asked = load(query + g * width + x);
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; lane++)
        part[lane] += asked * load(keys + (WHOLE || lane < count ? lane : count - 1) * width + x);
    }
    store(scores + g * stride, sums_of<1>(part) * scaling);
  }
}

// G query heads of one row, which share a key head; scores holds G times `stride` numbers, one vector more than keys.
template <typename T, int G>
static void attend(const T* query, const Segment<T>* segments, T* out, float* scores, int64_t stride, int64_t width,
                   float scaling) {
  int64_t places = 0;
  for (int i = 0; i < 3; i++) {
    const int64_t count = segments[i].count, whole = count / LANES * LANES;
    const T* keys = segments[i].keys;
    for (int64_t j = 0; j < whole; j += LANES) {
      for (int64_t x = 0; x < LANES * width; x += 64 / sizeof(T)) __builtin_prefetch(segments[i].values + j * width + x, 0, 2);
      score<T, G, true>(query, keys + j * width, scores + places + j, stride, width, LANES, scaling);
    }
    if (whole < count)
      score<T, G, false>(query, keys + whole * width, scores + places + whole, stride, width, count - whole, scaling);
    places += count;
  }
  float sums[G];
  for (int g = 0; g < G; g++) {
    float* own = scores + g * stride;
    for (int64_t j = places; j % LANES; j++) own[j] = -1e30f;
    Vector most = load(own);
    for (int64_t j = LANES; j < places; j += LANES) most = load(own + j) > most ? load(own + j) : most;
    float top = most[0];
    for (int i = 1; i < LANES; i++) top = most[i] > top ? most[i] : top;
    Vector sum = {};
    for (int64_t j = 0; j < places; j += LANES) {
      const Vector weight = exponential(load(own + j) - top);
      store(own + j, weight);
      sum += weight;
    }
    sums[g] = total(sum);
  }
  int64_t x = 0;
  for (; x + 2 * LANES <= width; x += 2 * LANES) average<T, G, 2>(segments, scores, sums, out, stride, width, x);
  if (x < width) average<T, G, 1>(segments, scores, sums, out, stride, width, x);
}

template <typename T>
static void attention(const T* query, const T* key, const T* value, T* keys, T* values,
                      const T* prompt_keys, const T* prompt_values, const int64_t* prompt, const int64_t* lengths,
                      const int64_t* ages, T* out, int64_t rows, int64_t key_heads, int64_t columns,
                      int64_t prompt_width, int64_t width, int64_t time, int64_t window, int group, float scaling,
                      int threads) {
  typedef void (*Attend)(const T*, const Segment<T>*, T*, float*, int64_t, int64_t, float);
  const Attend attend_group[] = {attend<T, 1>, attend<T, 2>, attend<T, 3>, attend<T, 4>, attend<T, 5>, attend<T, 6>, attend<T, 7>, attend<T, 8>};
  const int64_t now = time % columns, stride = prompt_width + columns + LANES;
#pragma omp parallel num_threads(threads)
  {
    const std::unique_ptr<float[]> scores(new float[(group < 8 ? group : 8) * stride]);
#pragma omp for schedule(dynamic, 8)
    for (int64_t item = 0; item < rows * key_heads; item++) {
      // rows of one group follow each other, so that a head's keys of their prompt stay in the processor's cache
      const int64_t row = item % rows, head = item / rows, place = row * key_heads + head;
      T *own_keys = keys + place * columns * width, *own_values = values + place * columns * width;
      for (int64_t x = 0; x < width; x++) {
        own_keys[now * width + x] = key[place * width + x];
        own_values[now * width + x] = value[place * width + x];
      }
      const int64_t position = lengths[row] + ages[row];
      const int64_t hidden = window && position >= window ? position - window + 1 : 0;
      const int64_t first = hidden < lengths[row] ? hidden : lengths[row];
      const int64_t own = window && ages[row] >= window ? window : ages[row] + 1;
      const int64_t recent = own <= now + 1 ? own : now + 1, wrapped = own - recent;
      const int64_t given = (prompt[row] * key_heads + head) * prompt_width + first;
      const T *given_keys = prompt_keys + given * width, *given_values = prompt_values + given * width;
      const int64_t tail = (columns - wrapped) * width, fresh = (now + 1 - recent) * width, next = key_heads * columns * width;
      const Segment<T> segments[3] = {
          {given_keys, given_values, lengths[row] - first, given_keys},
          {own_keys + tail, own_values + tail, wrapped, own_keys + tail + next},
          {own_keys + fresh, own_values + fresh, recent, own_keys + fresh + next},
      };
      for (int g = 0; g < group; g += 8) {
        const int64_t at = (place * group + g) * width;
        const Attend some = attend_group[(group - g < 8 ? group - g : 8) - 1];
        some(query + at, segments, out + at, scores.get(), stride, width, scaling);
      }
    }
  }
}

#define DECODE(T, NAME)                                                                                                  \
  void decode_attention_##NAME(const T* query, const T* key, const T* value, T* keys, T* values, const T* prompt_keys,   \
                               const T* prompt_values, const int64_t* prompt, const int64_t* lengths,                    \
                               const int64_t* ages, T* out, int64_t rows, int64_t key_heads, int64_t columns,            \
                               int64_t prompt_width, int64_t width, int64_t time, int64_t window, int group,             \
                               float scaling, int threads) {                                                             \
    attention(query, key, value, keys, values, prompt_keys, prompt_values, prompt, lengths, ages, out, rows, key_heads,  \
              columns, prompt_width, width, time, window, group, scaling, threads);                                      \
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
