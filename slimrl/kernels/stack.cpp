// All layers of a decode step in one call. Between two kernels of a small model Python takes as long as a kernel; here it takes
// part once a step. stack.py says what the arguments are.

#include "vectors.h"

#include <memory>

// Sizes of every layer, and the step's place in time.
struct Sizes {
  int64_t rows, hidden, heads, key_heads, width, intermediate, columns, prompt_width, time;
};

// One linear product of the same rows; decode.cpp's record.
template <typename T>
struct Part {
  const T *weight, *bias;
  T* y;
  int64_t outputs;
};

template <typename T>
struct Linear {
  const T *weight, *bias;
};

template <typename T>
struct Layer {
  const T* norm;
  Linear<T> query, key, value, output;
  const T* gate_norm;
  Linear<T> gate, up, down;
  T *keys, *values;
  const T *prompt_keys, *prompt_values;
  int64_t window;
  float epsilon, gate_epsilon, scaling;
};

// Rows of the cache: the place of each one's prompt, its tokens, and the tokens fed before.
struct Places {
  const int64_t *prompt, *lengths, *ages;
};

#define KERNELS(T, NAME)                                                                                                      \
  extern "C" {                                                                                                                \
  void products_##NAME(const Part<T>*, int64_t, const T*, int64_t, int64_t, int);                                             \
  void add_norm_##NAME(float*, const float*, const T*, const T*, T*, float*, int64_t, int64_t, float, int);                   \
  void rotate_##NAME(T*, const T*, const T*, int64_t, int64_t, int64_t, int, int);                                            \
  void gate_##NAME(const T*, const T*, T*, int64_t, int);                                                                     \
  void decode_attention_##NAME(const T*, const T*, const T*, T*, T*, const T*, const T*, const int64_t*, const int64_t*,      \
                               const int64_t*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, float, \
                               int);                                                                                          \
  }                                                                                                                           \
  template <>                                                                                                                 \
  struct Kernels<T> {                                                                                                         \
    static constexpr auto products = products_##NAME;                                                                         \
    static constexpr auto add_norm = add_norm_##NAME;                                                                         \
    static constexpr auto rotate = rotate_##NAME;                                                                             \
    static constexpr auto gate = gate_##NAME;                                                                                 \
    static constexpr auto attention = decode_attention_##NAME;                                                                \
  };

template <typename T>
struct Kernels;
KERNELS(float, float32)
#if HAS_BFLOAT16
KERNELS(BFloat16, bfloat16)
#endif

// x [rows][hidden] is the residual stream, which is used up; y gets it behind the last norm.
template <typename T>
static void decode_layers(const Layer<T>* layers, int64_t count, const Sizes& s, const Places& places, float* x, const T* cosine,
                          const T* sine, const T* norm, float epsilon, T* y, int threads) {
  using K = Kernels<T>;
  const int64_t queries = s.heads * s.width, keys = s.key_heads * s.width;
  const std::unique_ptr<float[]> scale(new float[s.rows]);
  const std::unique_ptr<T[]> room(new T[s.rows * (s.hidden + 2 * queries + 2 * keys + 2 * s.intermediate)]);
  T *delta = room.get(), *query = delta + s.rows * s.hidden, *key = query + s.rows * queries, *value = key + s.rows * keys;
  T *attended = value + s.rows * keys, *gated = attended + s.rows * queries, *up = gated + s.rows * s.intermediate;
  for (int64_t i = 0; i < count; i++) {
    const Layer<T>& layer = layers[i];
    K::add_norm(x, x, i ? delta : nullptr, layer.norm, y, scale.get(), s.rows, s.hidden, layer.epsilon, threads);
    const Part<T> inputs[3] = {{layer.query.weight, layer.query.bias, query, queries},
                               {layer.key.weight, layer.key.bias, key, keys},
                               {layer.value.weight, layer.value.bias, value, keys}};
    K::products(inputs, 3, y, s.hidden, s.rows, threads);
    K::rotate(query, cosine, sine, s.rows, s.heads, s.width, 0, threads);
    K::rotate(key, cosine, sine, s.rows, s.key_heads, s.width, 0, threads);
    K::attention(query, key, value, layer.keys, layer.values, layer.prompt_keys, layer.prompt_values, places.prompt,
                 places.lengths, places.ages, attended, s.rows, s.key_heads, s.columns, s.prompt_width, s.width, s.time,
                 layer.window, static_cast<int>(s.heads / s.key_heads), layer.scaling, threads);
    const Part<T> output = {layer.output.weight, layer.output.bias, delta, s.hidden};
    K::products(&output, 1, attended, queries, s.rows, threads);
    K::add_norm(x, x, delta, layer.gate_norm, y, scale.get(), s.rows, s.hidden, layer.gate_epsilon, threads);
    const Part<T> gates[2] = {{layer.gate.weight, layer.gate.bias, gated, s.intermediate},
                              {layer.up.weight, layer.up.bias, up, s.intermediate}};
    K::products(gates, 2, y, s.hidden, s.rows, threads);
    K::gate(gated, up, gated, s.rows * s.intermediate, threads);
    const Part<T> down = {layer.down.weight, layer.down.bias, delta, s.hidden};
    K::products(&down, 1, gated, s.intermediate, s.rows, threads);
  }
  K::add_norm(x, x, delta, norm, y, scale.get(), s.rows, s.hidden, epsilon, threads);
}

#define STACK(T, NAME)                                                                                                      \
  void decode_layers_##NAME(const Layer<T>* layers, int64_t count, const Sizes* sizes, const Places* places, float* x,      \
                            const T* cosine, const T* sine, const T* norm, float epsilon, T* y, int threads) {              \
    decode_layers(layers, count, *sizes, *places, x, cosine, sine, norm, epsilon, y, threads);                              \
  }

extern "C" {
STACK(float, float32)
#if HAS_BFLOAT16
STACK(BFloat16, bfloat16)
#endif
}
