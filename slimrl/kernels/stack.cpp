// All layers of a decode step in one call. Between two kernels of a small model Python takes as long as a kernel; here it takes
// part once a step. stack.py says what the arguments are.

#include "products.h"
#include "vectors.h"

#include <memory>

// Sizes of every layer, and the step's place in time.
struct StackSizes {
  int64_t rows, hidden, heads, key_heads, width, intermediate, columns, prompt_width, query_norm, key_norm, rank, time;
};

// An adapter that a product does not have is two null pointers: its factors are [rank][inputs] and [outputs][rank].
template <typename T>
struct Linear {
  const T *weight, *bias, *lora_a, *lora_b;
};

// A product of a layer, and where its outputs go.
template <typename T>
struct Output {
  const Linear<T>& linear;
  T* y;
  int64_t outputs;
};

// A norm that a layer does not have is a null pointer.
template <typename T>
struct Layer {
  Linear<T> query, key, value, output, gate, up, down;
  const T *before_attention, *behind_attention, *before_mlp, *behind_mlp, *query_norm, *key_norm;
  T *keys, *values;
  const T *prompt_keys, *prompt_values;
  int64_t window, turn, gelu;  // the place of its rotary table, or -1
  float epsilon, offset, scaling, lora_scaling;
};

// Rows of the cache: the place of each one's prompt, its tokens, and the tokens fed before.
struct Places {
  const int64_t *prompt, *lengths, *ages;
};

// A rotary table [rows][width].
struct Turn {
  const void *cosine, *sine;
};

#define KERNELS(T, NAME, PREFIX, WIDE, WIDENED)                                                                               \
  extern "C" {                                                                                                                \
  void products_##NAME(const Part<T, T>*, int64_t, const T*, int64_t, int64_t, int);                                          \
  void products_##WIDENED##NAME(const Part<T, float>*, int64_t, const T*, int64_t, int64_t, int);                             \
  void add_norm_##NAME(float*, const float*, const T*, const T*, T*, float*, int64_t, int64_t, float, float, int);            \
  void PREFIX##add_norm_##NAME(T*, const T*, const T*, const T*, T*, float*, int64_t, int64_t, float, float, int);            \
  void rotate_##NAME(T*, const T*, const T*, int64_t, int64_t, int64_t, int, int);                                            \
  void WIDE##rotate_##NAME(T*, const float*, const float*, int64_t, int64_t, int64_t, int, int);                              \
  void gate_##NAME(const T*, const T*, T*, int64_t, int, int);                                                                \
  void decode_attention_##NAME(const T*, const T*, const T*, T*, T*, const T*, const T*, const int64_t*, const int64_t*,      \
                               const int64_t*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, float, \
                               int);                                                                                          \
  }                                                                                                                           \
  template <>                                                                                                                 \
  struct Kernels<T> {                                                                                                         \
    static constexpr auto products = products_##NAME;                                                                         \
    static constexpr auto widened = products_##WIDENED##NAME;                                                                 \
    static constexpr auto add_norm = add_norm_##NAME;                                                                         \
    static constexpr auto own_norm = PREFIX##add_norm_##NAME;                                                                 \
    static constexpr auto rotate = rotate_##NAME;                                                                             \
    static constexpr auto wide_rotate = WIDE##rotate_##NAME;                                                                  \
    static constexpr auto gate = gate_##NAME;                                                                                 \
    static constexpr auto attention = decode_attention_##NAME;                                                                \
  };

template <typename T>
struct Kernels;
KERNELS(float, float32, , , )
#if HAS_BFLOAT16
KERNELS(BFloat16, bfloat16, narrow_, wide_, widened_)
#endif

// One step: its buffers, and what every layer does with them.
template <typename T>
struct Pass {
  using K = Kernels<T>;
  const StackSizes& s;
  float *x, *scale;  // the residual stream, and a number for each row and head
  T* h;              // what enters a product
  T* low;            // the same in the width of adapters, of the products of one call
  float* wide;       // and before it is scaled and rounded
  int threads;

  // The products of `from` [rows][inputs], each with its adapter where it has one.
  template <int COUNT>
  void multiply(const Layer<T>& layer, const Output<T> (&wanted)[COUNT], const T* from, int64_t inputs) const {
    Part<T, T> parts[COUNT];
    Part<T, float> narrow[COUNT];
    const int64_t size = s.rows * s.rank;
    int64_t adapted = 0;
    for (int i = 0; i < COUNT; i++) {
      const Linear<T>& linear = wanted[i].linear;
      parts[i] = {linear.weight, linear.bias, wanted[i].y, wanted[i].outputs, nullptr, nullptr, 0};
      if (!linear.lora_a) continue;
      T* const lower = low + adapted * size;
      narrow[adapted] = {linear.lora_a, nullptr, wide + adapted * size, s.rank, nullptr, nullptr, 0};
      adapted++;
      parts[i].factor = linear.lora_b, parts[i].low = lower, parts[i].rank = s.rank;
    }
    if (adapted) {
      K::widened(narrow, adapted, from, inputs, s.rows, threads);
      for (int64_t i = 0; i < adapted * size; i++) put(low + i, wide[i] * layer.lora_scaling);
    }
    K::products(parts, COUNT, from, inputs, s.rows, threads);
  }

  // h = the norm of x + delta, and x = that sum; without a norm the sum in T.
  void before(const Layer<T>& layer, const T* norm, const T* added) const {
    if (norm) return K::add_norm(x, x, added, norm, h, scale, s.rows, s.hidden, layer.epsilon, layer.offset, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < s.rows * s.hidden; i += LANES) {
      if (added) store(x + i, load(x + i) + load(added + i));
      store(h + i, load(x + i));
    }
  }

  // Numbers of T in place, `width` of them at a time.
  void normalize(const Layer<T>& layer, T* part, const T* norm, int64_t count, int64_t width) const {
    if (norm) K::own_norm(part, part, nullptr, norm, part, scale, count / width, width, layer.epsilon, layer.offset, threads);
  }

  void rotate(T* part, const Turn& turn, bool wide, int64_t heads) const {
    const auto cosine = turn.cosine, sine = turn.sine;
    if (wide)
      K::wide_rotate(part, static_cast<const float*>(cosine), static_cast<const float*>(sine), s.rows, heads, s.width, 0, threads);
    else
      K::rotate(part, static_cast<const T*>(cosine), static_cast<const T*>(sine), s.rows, heads, s.width, 0, threads);
  }
};

// x [rows][hidden] is the residual stream, which is used up; y gets it behind the last norm. Rotary tables are float32
// where they are `wide`, else of T.
template <typename T>
static void decode_layers(const Layer<T>* layers, int64_t count, const StackSizes& s, const Places& places, float* x, const Turn* turns,
                          bool wide, const T* norm, T* y, int threads) {
  using K = Kernels<T>;
  const int64_t queries = s.heads * s.width, keys = s.key_heads * s.width;
  const std::unique_ptr<float[]> scale(new float[s.rows * (s.heads + 3 * s.rank)]);
  const std::unique_ptr<T[]> room(new T[s.rows * (s.hidden + 2 * queries + 2 * keys + 2 * s.intermediate + 3 * s.rank)]);
  T *delta = room.get(), *query = delta + s.rows * s.hidden, *key = query + s.rows * queries, *value = key + s.rows * keys;
  T *attended = value + s.rows * keys, *gated = attended + s.rows * queries, *up = gated + s.rows * s.intermediate;
  const Pass<T> step = {s, x, scale.get(), y, up + s.rows * s.intermediate, scale.get() + s.rows * s.heads, threads};
  for (int64_t i = 0; i < count; i++) {
    const Layer<T>& layer = layers[i];
    step.before(layer, layer.before_attention, i ? delta : nullptr);
    step.template multiply<3>(layer, {{layer.query, query, queries}, {layer.key, key, keys}, {layer.value, value, keys}}, y, s.hidden);
    step.normalize(layer, query, layer.query_norm, s.rows * queries, s.query_norm);
    step.normalize(layer, key, layer.key_norm, s.rows * keys, s.key_norm);
    if (layer.turn >= 0) {
      step.rotate(query, turns[layer.turn], wide, s.heads);
      step.rotate(key, turns[layer.turn], wide, s.key_heads);
    }
    K::attention(query, key, value, layer.keys, layer.values, layer.prompt_keys, layer.prompt_values, places.prompt,
                 places.lengths, places.ages, attended, s.rows, s.key_heads, s.columns, s.prompt_width, s.width, s.time,
                 layer.window, static_cast<int>(s.heads / s.key_heads), layer.scaling, threads);
    step.template multiply<1>(layer, {{layer.output, delta, s.hidden}}, attended, queries);
    step.normalize(layer, delta, layer.behind_attention, s.rows * s.hidden, s.hidden);
    step.before(layer, layer.before_mlp, delta);
    step.template multiply<2>(layer, {{layer.gate, gated, s.intermediate}, {layer.up, up, s.intermediate}}, y, s.hidden);
    K::gate(gated, up, gated, s.rows * s.intermediate, static_cast<int>(layer.gelu), threads);
    step.template multiply<1>(layer, {{layer.down, delta, s.hidden}}, gated, s.intermediate);
    step.normalize(layer, delta, layer.behind_mlp, s.rows * s.hidden, s.hidden);
  }
  step.before(layers[count - 1], norm, delta);
}

#define STACK(T, NAME)                                                                                                      \
  void decode_layers_##NAME(const Layer<T>* layers, int64_t count, const StackSizes* sizes, const Places* places, float* x,      \
                            const Turn* turns, int64_t wide, const T* norm, T* y, int threads) {                            \
    decode_layers(layers, count, *sizes, *places, x, turns, wide, norm, y, threads);                                        \
  }

extern "C" {
STACK(float, float32)
#if HAS_BFLOAT16
STACK(BFloat16, bfloat16)
#endif
}
