// The two parts of a decode step that read much memory for little arithmetic, float32. native.py compiles them for the
// processor they run on, and says what the arguments are.

#include <cstdint>
#include <initializer_list>
#include <memory>

#if defined(__AVX512F__)
constexpr int LANES = 16, OUTPUTS = 8, MOST = 3;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, OUTPUTS = 4, MOST = 3;
#else
#error "AVX2 or AVX-512 is needed"
#endif
constexpr int64_t LINE = 64 / sizeof(float);
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

static inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
static inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// The product of few rows: every weight is read once, in the order in which it lies in memory, and met there by all rows,
// which are the lanes of a vector.

// R outputs of up to V vectors of rows. x is [inputs][V * LANES], the sums stay in registers until the last input.
template <int R, int V>
static inline void block(const float* weight, const float* x, const float* bias, float* y,
                         int64_t outputs, int64_t inputs, int rows) {
  Vector sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = Vector{} + (bias ? bias[r] : 0.0f);
  for (int64_t first = 0; first < inputs; first += LINE) {
    for (int r = 0; r < R; r++) {
      // R streams of weights at once are more than the processor foresees: the same line of the next R outputs, too.
      __builtin_prefetch(weight + r * inputs + first + 3 * LINE, 0, 3);
      __builtin_prefetch(weight + (r + R) * inputs + first, 0, 2);
    }
    const int64_t end = first + LINE < inputs ? first + LINE : inputs;
    for (int64_t k = first; k < end; k++) {
      Vector lanes[V];
      for (int v = 0; v < V; v++) lanes[v] = load(x + (k * V + v) * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] += weight[r * inputs + k] * lanes[v];
    }
  }
  for (int v = 0; v < V; v++)
    for (int lane = 0; lane < LANES && v * LANES + lane < rows; lane++)
      for (int r = 0; r < R; r++) y[(v * LANES + lane) * outputs + r] = sum[r][v][lane];
}

// R outputs of all rows, which go in tiles of up to MOST vectors; scratch is [tile][inputs][vectors of the tile * LANES].
template <int R>
static void outputs_of(const float* weight, const float* scratch, const float* bias, float* y,
                       int64_t outputs, int64_t inputs, int rows) {
  for (int row = 0; row < rows; row += MOST * LANES) {
    const int left = rows - row;
    const auto tile = left <= LANES ? block<R, 1> : left <= 2 * LANES ? block<R, 2> : block<R, MOST>;
    tile(weight, scratch + row * inputs, bias, y + row * outputs, outputs, inputs, left);
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

static inline float total(Vector v) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

// exp(x) for x <= 0: 2^n exp(r) with |r| <= ln 2 / 2, and for exp(r) the polynomial of Cephes' expf.
static inline Vector exponential(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x;
  const Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);
  const Vector whole = __builtin_convertvector(n, Vector);
  const Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector p = Vector{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  p = p * r * r + r + 1.0f;
  return p * (Vector)((n + 127) << 23);
}

struct Segment {
  const float *keys, *values;
  int64_t count;
  const float* later;  // keys of the next task, asked for while values are read
};

// What X vectors of the values from `first` on average to under the weights of G heads.
template <int G, int X>
static inline void average(const Segment* segments, const float* weights, const float* sums, float* out, int64_t stride,
                           int64_t width, int64_t first) {
  Vector sum[G][X] = {};
  for (int i = 0; i < 3; i++) {
    const Segment segment = segments[i];
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
template <int G, bool WHOLE>
static inline void score(const float* query, const float* keys, float* scores, int64_t stride, int64_t width, int64_t count,
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
template <int G>
static void attend(const float* query, const Segment* segments, float* out, float* scores, int64_t stride, int64_t width,
                   float scaling) {
  int64_t places = 0;
  for (int i = 0; i < 3; i++) {
    const int64_t count = segments[i].count, whole = count / LANES * LANES;
    const float* keys = segments[i].keys;
    for (int64_t j = 0; j < whole; j += LANES) {
      for (int64_t x = 0; x < LANES * width; x += LINE) __builtin_prefetch(segments[i].values + j * width + x, 0, 2);
      score<G, true>(query, keys + j * width, scores + places + j, stride, width, LANES, scaling);
    }
    if (whole < count)
      score<G, false>(query, keys + whole * width, scores + places + whole, stride, width, count - whole, scaling);
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
  for (; x + 2 * LANES <= width; x += 2 * LANES) average<G, 2>(segments, scores, sums, out, stride, width, x);
  if (x < width) average<G, 1>(segments, scores, sums, out, stride, width, x);
}

extern "C" {

int lanes = LANES;

void few_rows(const float* weight, const float* x, const float* bias, float* y, float* scratch,
              int64_t outputs, int64_t inputs, int rows, int threads) {
  const int64_t blocks = outputs / OUTPUTS * OUTPUTS;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < inputs; k++)
      for (int row = 0; row < rows; row += MOST * LANES) {
        const int vectors = (rows - row + LANES - 1) / LANES, width = (vectors < MOST ? vectors : MOST) * LANES;
        float* column = scratch + row * inputs + k * width;
        for (int i = 0; i < width; i++) column[i] = row + i < rows ? x[(row + i) * inputs + k] : 0.0f;
      }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < blocks; n += OUTPUTS)
      outputs_of<OUTPUTS>(weight + n * inputs, scratch, bias ? bias + n : nullptr, y + n, outputs, inputs, rows);
  }
  for (int64_t n = blocks; n < outputs; n++)
    outputs_of<1>(weight + n * inputs, scratch, bias ? bias + n : nullptr, y + n, outputs, inputs, rows);
}

void decode_attention(const float* query, const float* key, const float* value, float* keys, float* values,
                      const float* prompt_keys, const float* prompt_values, const int64_t* prompt, const int64_t* lengths,
                      const int64_t* ages, float* out, int64_t rows, int64_t key_heads, int64_t columns,
                      int64_t prompt_width, int64_t width, int64_t time, int64_t window, int group, float scaling,
                      int threads) {
  typedef void (*Attend)(const float*, const Segment*, float*, float*, int64_t, int64_t, float);
  const Attend attend_group[] = {attend<1>, attend<2>, attend<3>, attend<4>, attend<5>, attend<6>, attend<7>, attend<8>};
  const int64_t now = time % columns, stride = prompt_width + columns + LANES;
#pragma omp parallel num_threads(threads)
  {
    const std::unique_ptr<float[]> scores(new float[(group < 8 ? group : 8) * stride]);
#pragma omp for schedule(dynamic, 8)
    for (int64_t item = 0; item < rows * key_heads; item++) {
      // rows of one group follow each other, so that a head's keys of their prompt stay in the processor's cache
      const int64_t row = item % rows, head = item / rows, place = row * key_heads + head;
      float *own_keys = keys + place * columns * width, *own_values = values + place * columns * width;
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
      const float *given_keys = prompt_keys + given * width, *given_values = prompt_values + given * width;
      const int64_t tail = (columns - wrapped) * width, fresh = (now + 1 - recent) * width, next = key_heads * columns * width;
      const Segment segments[3] = {
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

}
