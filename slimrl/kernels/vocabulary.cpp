// Logits of one chunk turned into values, and into their own gradient, a row at a time. vocabulary.py says what the arguments are.

#include "vectors.h"

#include <algorithm>
#include <cmath>

constexpr float NEVER = -87.0f;      // from here on exp gives 0
constexpr int64_t BLOCK = 64 * LANES;  // numbers that are summed in float32

static inline Vector loaded(const float* from, int64_t count) {
  if (count >= LANES) return load(from);
  Vector v{};
  for (int64_t i = 0; i < LANES; i++) v[i] = i < count ? from[i] : -3e38f;
  return v;
}
template <typename T>
static inline void stored(T* to, Vector value, int64_t count) {
  if (count >= LANES) return store(to, value);
  for (int64_t i = 0; i < count; i++) put(to + i, value[i]);
}

// The largest of a row's logits.
static inline float largest(const float* x, int64_t vocabulary) {
  Vector most = Vector{} - 3e38f;
  for (int64_t i = 0; i < vocabulary; i += LANES) {
    const Vector v = loaded(x + i, vocabulary - i);
    most = v > most ? v : most;
  }
  float top = most[0];
  for (int i = 1; i < LANES; i++) top = std::max(top, most[i]);
  return top;
}

// Logits, in place, to exp((logit - the row's largest) / temperature), and the sums of blocks of so many numbers, which are a
// multiple of LANES.
static void exponentiate(float* logits, double* sums, int64_t rows, int64_t vocabulary, int64_t block, float temperature,
                         int threads) {
  const int64_t blocks = (vocabulary + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    float* x = logits + row * vocabulary;
    const float top = largest(x, vocabulary);
    for (int64_t first = 0; first < vocabulary; first += block) {
      Vector sum{};
      for (int64_t i = first; i < std::min(first + block, vocabulary); i += LANES) {
        const Vector z = (loaded(x + i, vocabulary - i) - top) / temperature;
        const Vector e = z < NEVER ? Vector{} : exponential(z);
        stored(x + i, e, vocabulary - i);
        sum += e;
      }
      sums[row * blocks + first / block] = total(sum);
    }
  }
}

static void summarize(float* logits, const int64_t* targets, float* logprobs, float* entropies, float* normalizers, int64_t rows,
                      int64_t vocabulary, float temperature, int64_t keeps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    float* x = logits + row * vocabulary;
    const float top = largest(x, vocabulary);
    const float chosen = (x[targets[row]] - top) / temperature;
    double sum = 0, dot = 0;
    for (int64_t block = 0; block < vocabulary; block += BLOCK) {
      Vector sums{}, dots{};
      for (int64_t i = block; i < std::min(block + BLOCK, vocabulary); i += LANES) {
        const Vector z = (loaded(x + i, vocabulary - i) - top) / temperature;
        const Vector e = z < NEVER ? Vector{} : exponential(z);
        sums += e;
        dots += (z < NEVER ? Vector{} : z) * e;
        if (keeps) stored(x + i, e, vocabulary - i);
      }
      sum += total(sums), dot += total(dots);
    }
    const float level = static_cast<float>(std::log(sum));
    logprobs[row] = chosen - level;
    entropies[row] = static_cast<float>(std::log(sum) - dot / sum);
    normalizers[row] = keeps ? static_cast<float>(sum) : top / temperature + level;
  }
}

template <typename T>
static void slope(const float* logits, const int64_t* targets, const float* normalizers, const float* gradients, T* out,
                  int64_t rows, int64_t vocabulary, float temperature, int64_t kept, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const float* x = logits + row * vocabulary;
    T* y = out + row * vocabulary;
    const float g = gradients[row], factor = kept ? -g / normalizers[row] : -g;
    const float target = x[targets[row]];
    for (int64_t i = 0; i < vocabulary; i += LANES) {
      Vector v = loaded(x + i, vocabulary - i);
      if (!kept) {
        const Vector z = v / temperature - normalizers[row];
        v = z < NEVER ? Vector{} : exponential(z < 0.0f ? z : Vector{});
      }
      stored(y + i, v * factor, vocabulary - i);
    }
    const float p = kept ? target : std::exp(target / temperature - normalizers[row]);
    put(y + targets[row], p * factor + g);
  }
}

extern "C" {
void exponentiate_float32(float* logits, double* sums, int64_t rows, int64_t vocabulary, int64_t block, float temperature,
                          int threads) {
  exponentiate(logits, sums, rows, vocabulary, block, temperature, threads);
}
void summarize_float32(float* logits, const int64_t* targets, float* logprobs, float* entropies, float* normalizers, int64_t rows,
                       int64_t vocabulary, float temperature, int64_t keeps, int threads) {
  summarize(logits, targets, logprobs, entropies, normalizers, rows, vocabulary, temperature, keeps, threads);
}
void slope_float32(const float* logits, const int64_t* targets, const float* normalizers, const float* gradients, float* out,
                   int64_t rows, int64_t vocabulary, float temperature, int64_t kept, int threads) {
  slope(logits, targets, normalizers, gradients, out, rows, vocabulary, temperature, kept, threads);
}
#if HAS_BFLOAT16
void slope_bfloat16(const float* logits, const int64_t* targets, const float* normalizers, const float* gradients, BFloat16* out,
                    int64_t rows, int64_t vocabulary, float temperature, int64_t kept, int threads) {
  slope(logits, targets, normalizers, gradients, out, rows, vocabulary, temperature, kept, threads);
}
#endif
}
