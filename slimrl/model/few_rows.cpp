// y = x W^T + b for the few rows of a decode step, float32: every weight is read once, in the order in which it lies in
// memory, and met there by all rows, which are the lanes of a vector. Compiled for the processor it runs on by linear.py.

#include <cstdint>

#if defined(__AVX512F__)
constexpr int LANES = 16, OUTPUTS = 8, MOST = 3;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, OUTPUTS = 4, MOST = 3;
#else
#error "few_rows needs AVX2 or AVX-512"
#endif
constexpr int64_t LINE = 64 / sizeof(float);
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

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
      for (int v = 0; v < V; v++) lanes[v] = *reinterpret_cast<const Vector*>(x + (k * V + v) * LANES);
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

extern "C" {

int lanes = LANES;

// weight [outputs][inputs], x [rows][inputs], bias [outputs] or null, y [rows][outputs];
// scratch holds inputs times the rows, rounded up to whole vectors.
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

}
