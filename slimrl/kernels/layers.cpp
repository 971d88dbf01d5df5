// What a decoder layer computes between its matrix products, each in one pass over memory, forward and backward. layers.py
// says what the arguments are.

#include "vectors.h"

#include <omp.h>

#include <cmath>

static inline float mean_square(const float* x, int64_t width) {
  Vector sum{};
  for (int64_t i = 0; i < width; i += LANES) {
    const Vector v = load(x + i);
    sum += v * v;
  }
  return total(sum) / static_cast<float>(width);
}

// sum = x + delta, where there is a delta; else sum is x. scale = 1 / rms(sum), y = weight * sum * scale.
template <typename T>
static void add_norm(float* sum, const float* x, const T* delta, const T* weight, T* y, float* scale, int64_t rows,
                     int64_t width, float epsilon, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t at = row * width;
    if (delta)
      for (int64_t i = at; i < at + width; i += LANES) store(sum + i, load(x + i) + load(delta + i));
    const float s = 1.0f / std::sqrt(mean_square(sum + at, width) + epsilon);
    scale[row] = s;
    for (int64_t i = 0; i < width; i += LANES) store(y + at + i, load(sum + at + i) * s * load(weight + i));
  }
}

// y = weight * x * scale, as add_norm made it.
template <typename T>
static void norm_again(const float* x, const T* weight, const float* scale, T* y, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < width; i += LANES)
      store(y + row * width + i, load(x + row * width + i) * scale[row] * load(weight + i));
}

// dx += the gradient of x under that of y, and narrow is dx in T; dweight [threads][width], which is 0, gets the sums over each
// thread's rows.
template <typename T>
static void norm_backward(const T* dy, const float* x, const T* weight, const float* scale, float* dx, T* narrow,
                          float* dweight, int64_t rows, int64_t width, int threads) {
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
        dot += d * load(weight + i) * unit;
        store(sums + i, load(sums + i) + d * unit);
      }
      const float mean = total(dot) / static_cast<float>(width);
      for (int64_t i = 0; i < width; i += LANES) {
        const Vector unit = load(x + at + i) * s;
        const Vector sum = load(dx + at + i) + (load(dy + at + i) * load(weight + i) - unit * mean) * s;
        store(dx + at + i, sum);
        store(narrow + at + i, sum);
      }
    }
  }
}

// Rotary positions in place: x [tokens][heads][width], cosine and sine [tokens][width]; the backward pass turns back.
template <typename T, bool BACK>
static void rotate(T* x, const T* cosine, const T* sine, int64_t tokens, int64_t heads, int64_t width, int threads) {
  const int64_t half = width / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t token = 0; token < tokens; token++) {
    const T *c = cosine + token * width, *s = sine + token * width;
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

// out = gate * sigmoid(gate) * up
template <typename T>
static void gate(const T* g, const T* u, T* out, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i += LANES) {
    const Vector x = load(g + i);
    store(out + i, x * sigmoid(x) * load(u + i));
  }
}

// Given d = dL / d out: gate and up become their gradients, and d becomes out.
template <typename T>
static void gate_backward(T* g, T* u, T* d, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; i += LANES) {
    const Vector x = load(g + i), up = load(u + i), slope = load(d + i), s = sigmoid(x), silu = x * s;
    store(g + i, slope * up * (s + silu * (1.0f - s)));
    store(u + i, slope * silu);
    store(d + i, silu * up);
  }
}

#define LAYER_KERNELS(T, NAME)                                                                                           \
  void add_norm_##NAME(float* sum, const float* x, const T* delta, const T* weight, T* y, float* scale, int64_t rows,    \
                       int64_t width, float epsilon, int threads) {                                                      \
    add_norm(sum, x, delta, weight, y, scale, rows, width, epsilon, threads);                                            \
  }                                                                                                                      \
  void norm_again_##NAME(const float* x, const T* weight, const float* scale, T* y, int64_t rows, int64_t width,         \
                         int threads) {                                                                                  \
    norm_again(x, weight, scale, y, rows, width, threads);                                                               \
  }                                                                                                                      \
  void norm_backward_##NAME(const T* dy, const float* x, const T* weight, const float* scale, float* dx, T* narrow,      \
                            float* dweight, int64_t rows, int64_t width, int threads) {                                  \
    norm_backward(dy, x, weight, scale, dx, narrow, dweight, rows, width, threads);                                      \
  }                                                                                                                      \
  void rotate_##NAME(T* x, const T* cosine, const T* sine, int64_t tokens, int64_t heads, int64_t width, int back,       \
                     int threads) {                                                                                      \
    (back ? rotate<T, true> : rotate<T, false>)(x, cosine, sine, tokens, heads, width, threads);                         \
  }                                                                                                                      \
  void gate_##NAME(const T* g, const T* u, T* out, int64_t count, int threads) { gate(g, u, out, count, threads); }      \
  void gate_backward_##NAME(T* g, T* u, T* d, int64_t count, int threads) { gate_backward(g, u, d, count, threads); }

extern "C" {
LAYER_KERNELS(float, float32)
#if HAS_BFLOAT16
LAYER_KERNELS(BFloat16, bfloat16)
#endif
}
