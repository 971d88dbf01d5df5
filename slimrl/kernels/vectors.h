// Vectors of float32 numbers, and how they are read from and written to arrays of float32 or bfloat16.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>

#include <immintrin.h>

#if defined(__AVX512F__)
constexpr int LANES = 16, OUTPUTS = 8, MOST = 3;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, OUTPUTS = 4, MOST = 3;
#else
#error "AVX2 or AVX-512 is needed"
#endif
#if defined(__AVX512BF16__)
#define HAS_BFLOAT16 1
#else
#define HAS_BFLOAT16 0
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
struct BFloat16 {
  uint16_t bits;
};

static inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
static inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

#if HAS_BFLOAT16
static inline Vector load(const BFloat16* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}
// Rounds to the nearest, ties to even.
static inline void store(BFloat16* to, Vector value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value));
}
#endif

// Single numbers likewise.
static inline void put(float* to, float value) { *to = value; }
#if HAS_BFLOAT16
static inline void put(BFloat16* to, float value) {
  const __m128i bits = (__m128i)_mm_cvtneps_pbh(_mm_set_ss(value));
  to->bits = static_cast<uint16_t>(_mm_extract_epi16(bits, 0));
}
#endif
static inline float number(float value) { return value; }
static inline float number(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

static inline float total(Vector v) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

// COUNT vectors, in place: the perfect shuffle of all their numbers, which turns the COUNT x LANES matrix that they are. Each
// round interleaves the first half of the vectors with the second.
template <int COUNT>
static inline void transpose(Vector* part) {
  Integers low, high;
  for (int i = 0; i < LANES; i++) {
    low[i] = i / 2 + (i % 2 ? LANES : 0);
    high[i] = low[i] + LANES / 2;
  }
  for (int round = 1; round < COUNT; round *= 2) {
    Vector next[COUNT];
#pragma GCC unroll 8
    for (int i = 0; i < COUNT / 2; i++) {
      next[2 * i] = __builtin_shuffle(part[i], part[i + COUNT / 2], low);
      next[2 * i + 1] = __builtin_shuffle(part[i], part[i + COUNT / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; i++) part[i] = next[i];
  }
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
