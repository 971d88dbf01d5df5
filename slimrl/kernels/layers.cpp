// What a decoder layer computes between its matrix products, each in one pass over memory, forward and backward. layers.py
// says what the arguments are.

#include "vectors.h"

#include <omp.h>

#include <cmath>

// X is the type of what is normalized, which is float32 in the residual stream; T is that of weights and results. `offset` is
// added to the weights of a norm.

template <typename X>
static inline float mean_square(const X* x, int64_t width) {
  Vector sum{};
  for (int64_t i = 0; i < width; i += LANES) {
    const Vector v = load(x + i);
    sum += v * v;
  }
  return total(sum) / static_cast<float>(width);
}

// sum = x + delta, where there is a delta; else sum is x. scale = 1 / rms(sum), y = (weight + offset) * sum * scale.
template <typename X, typename T>
static void add_norm(X* sum, const X* x, const T* delta, const T* weight, T* y, float* scale, int64_t rows, int64_t width,
                     float epsilon, float offset, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t at = row * width;
    if (delta)
      for (int64_t i = at; i < at + width; i += LANES) store(sum + i, load(x + i) + load(delta + i));
    const float s = 1.0f / std::sqrt(mean_square(sum + at, width) + epsilon);
    scale[row] = s;
    for (int64_t i = 0; i < width; i += LANES) store(y + at + i, load(sum + at + i) * s * (load(weight + i) + offset));
  }
}

// y = (weight + offset) * x * scale, as add_norm made it.
template <typename T>
static void norm_again(const float* x, const T* weight, const float* scale, T* y, int64_t rows, int64_t width, float offset,
                       int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < width; i += LANES)
      store(y + row * width + i, load(x + row * width + i) * scale[row] * (load(weight + i) + offset));
}

// dx += the gradient of x under that of y, and narrow is dx in T; without dx, narrow is that gradient. dweight [threads][width]
// is 0 and gets the sums over each thread's rows.
template <typename X, typename T>
static void norm_backward(const T* dy, const X* x, const T* weight, const float* scale, float* dx, T* narrow, float* dweight,
                          int64_t rows, int64_t width, float offset, int threads) {
#pragma omp parallel num_threads(threads)
  {
    float* sums = dweight + omp_get_thread_num() * width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      const int64_t at = row * width;
      const float s = scale[row];
      Vector dot{};
      for (int64_t i = 0; i < width; i += LANES) {
        const Vector d = load(dy + at + i), unit = load(x + at + i) * s;
        dot += d * (load(weight + i) + offset) * unit;
        store(sums + i, load(sums + i) + d * unit);
      }
      const float mean = total(dot) / static_cast<float>(width);
      for (int64_t i = 0; i < width; i += LANES) {
        const Vector unit = load(x + at + i) * s;
        const Vector slope = load(dy + at + i) * (load(weight + i) + offset) - unit * mean;
        if (!dx) {
          store(narrow + at + i, slope * s);
          continue;
        }
        const Vector sum = load(dx + at + i) + slope * s;
        store(dx + at + i, sum);
        store(narrow + at + i, sum);
      }
    }
  }
}

// Rotary positions in place: x [tokens][heads][width], cosine and sine [tokens][width] of type C; the backward pass turns back.
template <bool BACK, typename T, typename C>
static void rotate(T* x, const C* cosine, const C* sine, int64_t tokens, int64_t heads, int64_t width, int threads) {
  const int64_t half = width / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t token = 0; token < tokens; token++) {
    const C *c = cosine + token * width, *s = sine + token * width;
    for (int64_t head = 0; head < heads; head++) {
      T* own = x + (token * heads + head) * width;
      for (int64_t i = 0; i < half; i += LANES) {
        const Vector a = load(own + i), b = load(own + half + i);
        const Vector ca = load(c + i), cb = load(c + half + i), sa = load(s + i), sb = load(s + half + i);
        store(own + i, BACK ? a * ca + b * sb : a * ca - b * sa);
        store(own + half + i, BACK ? b * cb - a * sa : b * cb + a * sb);
      }
    }
  }
}

static inline Vector sigmoid(Vector x) {
  const Vector e = exponential(x < 0.0f ? x : -x), one = Vector{} + 1.0f;
  return (x < 0.0f ? e : one) / (one + e);
}

// silu(x) is x * sigmoid(x), and the tanh form of gelu(x) is x * sigmoid(curve(x)), with this curve.
static inline Vector curve(Vector x) { return x * (x * x * 0.0713548163f + 1.59576912f); }
static inline Vector curve_slope(Vector x) { return x * x * 0.214064449f + 1.59576912f; }

// out = silu(gate) * up, or gelu(gate) * up
template <typename T, bool GELU>
static void gate(const T* g, const T* u, T* out, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i += LANES) {
    const Vector x = load(g + i);
    store(out + i, x * sigmoid(GELU ? curve(x) : x) * load(u + i));
  }
}

// Given d = dL / d out: gate and up become their gradients, and d becomes out.
template <typename T, bool GELU>
static void gate_backward(T* g, T* u, T* d, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i += LANES) {
    const Vector x = load(g + i), up = load(u + i), slope = load(d + i);
    const Vector s = sigmoid(GELU ? curve(x) : x), active = x * s;
    const Vector rest = GELU ? curve_slope(x) * (1.0f - s) : 1.0f - s;
    store(g + i, slope * up * (s + active * rest));
    store(u + i, slope * active);
    store(d + i, active * up);
  }
}

// PREFIX stands before the names of kernels that normalize what is of type X, or turn by tables of type C.
#define NORM_KERNELS(PREFIX, X, T, NAME)                                                                                 \
  void PREFIX##add_norm_##NAME(X* sum, const X* x, const T* delta, const T* weight, T* y, float* scale, int64_t rows,    \
                               int64_t width, float epsilon, float offset, int threads) {                                \
    add_norm(sum, x, delta, weight, y, scale, rows, width, epsilon, offset, threads);                                    \
  }                                                                                                                      \
  void PREFIX##norm_backward_##NAME(const T* dy, const X* x, const T* weight, const float* scale, float* dx, T* narrow,  \
                                    float* dweight, int64_t rows, int64_t width, float offset, int threads) {            \
    norm_backward(dy, x, weight, scale, dx, narrow, dweight, rows, width, offset, threads);                              \
  }

#define ROTATE_KERNEL(PREFIX, C, T, NAME)                                                                                \
  void PREFIX##rotate_##NAME(T* x, const C* cosine, const C* sine, int64_t tokens, int64_t heads, int64_t width,         \
                             int back, int threads) {                                                                    \
    (back ? rotate<true, T, C> : rotate<false, T, C>)(x, cosine, sine, tokens, heads, width, threads);                   \
  }

#define LAYER_KERNELS(T, NAME)                                                                                           \
  NORM_KERNELS(, float, T, NAME)                                                                                         \
  ROTATE_KERNEL(, T, T, NAME)                                                                                            \
  void norm_again_##NAME(const float* x, const T* weight, const float* scale, T* y, int64_t rows, int64_t width,         \
                         float offset, int threads) {                                                                    \
    norm_again(x, weight, scale, y, rows, width, offset, threads);                                                       \
  }                                                                                                                      \
  void gate_##NAME(const T* g, const T* u, T* out, int64_t count, int gelu, int threads) {                               \
    (gelu ? gate<T, true> : gate<T, false>)(g, u, out, count, threads);                                                  \
  }                                                                                                                      \
  void gate_backward_##NAME(T* g, T* u, T* d, int64_t count, int gelu, int threads) {                                    \
    (gelu ? gate_backward<T, true> : gate_backward<T, false>)(g, u, d, count, threads);                                  \
  }

extern "C" {
LAYER_KERNELS(float, float32)
#if HAS_BFLOAT16
LAYER_KERNELS(BFloat16, bfloat16)
NORM_KERNELS(narrow_, BFloat16, BFloat16, bfloat16)
ROTATE_KERNEL(wide_, float, BFloat16, bfloat16)
#endif
}
