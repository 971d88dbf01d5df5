// One of the linear products of the same rows, as decode.cpp computes them.

#pragma once

#include <cstdint>

// y = x W^T + bias + low factor^T, where rank is above 0: low [rows][rank] and factor [outputs][rank] are those of an adapter of
// low rank.
template <typename T, typename Y>
struct Part {
  const T *weight, *bias;
  Y* y;
  int64_t outputs;
  const T *factor, *low;
  int64_t rank;
};
