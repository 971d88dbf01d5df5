// AdamW and what is asked of its gradients, each in one pass over memory. optimizer.py says what the arguments are.

#include "vectors.h"

#include <omp.h>

#include <cmath>

constexpr int64_t ALONE = 16384;  // numbers for which other threads are not worth their start
constexpr int64_t RUN = 32 * LANES;  // numbers whose squares are added in float32, and their sums in float64

template <typename G>
static void sum_squares(const G* gradient, double* sums, int64_t count, int threads) {
#pragma omp parallel num_threads(threads) if (count > ALONE)
  {
    double sum = 0;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count / RUN; i++) {
      Vector part{};
      for (int64_t j = i * RUN; j < (i + 1) * RUN; j += LANES) {
        const Vector g = load(gradient + j);
        part += g * g;
      }
      sum += total(part);
    }
    sums[omp_get_thread_num()] = sum;
  }
  for (int64_t i = count / RUN * RUN; i < count; i++) {
    const float g = number(gradient[i]);
    sums[0] += g * g;
  }
}

struct Step {
  float rate, beta1, beta2, epsilon, decay, root;  // rate by the first moment's correction, root of the second's
  float factor;                                    // of gradients
};

#if defined(__AVX512F__)
static inline Vector root(Vector x) { return (Vector)_mm512_sqrt_ps((__m512)x); }
#else
static inline Vector root(Vector x) { return (Vector)_mm256_sqrt_ps((__m256)x); }
#endif
static inline float root(float x) { return std::sqrt(x); }

template <typename V>
static inline V moved(V weight, V g, V& mean, V& square, const Step& s) {
  mean = mean + (g - mean) * (1.0f - s.beta1);
  square = square * s.beta2 + g * g * (1.0f - s.beta2);
  return weight - (weight * s.decay + mean * s.rate / (root(square) / s.root + s.epsilon));
}

template <typename G, typename T>
static void adamw(float* master, float* mean, float* square, const G* gradient, T* weight, int64_t* spoiled, int64_t count,
                  const Step& s, int threads) {
  int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(+ : bad) num_threads(threads) if (count > ALONE)
  for (int64_t i = 0; i < count; i += LANES) {
    if (i + LANES <= count) {
      Vector m = load(mean + i), v = load(square + i);
      const Vector w = moved(load(master + i), load(gradient + i) * s.factor, m, v, s);
      store(mean + i, m), store(square + i, v), store(master + i, w);
      if (weight) store(weight + i, w);
      const Integers lost = (w - w) != 0.0f;  // of infinities and of what is no number
      for (int lane = 0; lane < LANES; lane++) bad -= lost[lane];
    } else {
      for (int64_t j = i; j < count; j++) {
        const float w = moved(master[j], number(gradient[j]) * s.factor, mean[j], square[j], s);
        master[j] = w;
        if (weight) put(weight + j, w);
        bad += !std::isfinite(w);
      }
    }
  }
  *spoiled += bad;
}

#define OPTIMIZER(G, NAME)                                                                            \
  void sum_squares_##NAME(const G* gradient, double* sums, int64_t count, int threads) {              \
    sum_squares(gradient, sums, count, threads);                                                      \
  }                                                                                                   \
  void adamw_##NAME(float* master, float* mean, float* square, const G* gradient, float* weight,      \
                    int64_t* spoiled, int64_t count, const Step* step, int threads) {                 \
    adamw(master, mean, square, gradient, weight, spoiled, count, *step, threads);                    \
  }

extern "C" {
OPTIMIZER(float, float32)
#if HAS_BFLOAT16
OPTIMIZER(BFloat16, bfloat16)
void adamw_narrow_float32(float* master, float* mean, float* square, const float* gradient, BFloat16* weight,
                          int64_t* spoiled, int64_t count, const Step* step, int threads) {
  adamw(master, mean, square, gradient, weight, spoiled, count, *step, threads);
}
void adamw_narrow_bfloat16(float* master, float* mean, float* square, const BFloat16* gradient, BFloat16* weight,
                           int64_t* spoiled, int64_t count, const Step* step, int threads) {
  adamw(master, mean, square, gradient, weight, spoiled, count, *step, threads);
}
#endif
}
