// One of the linear products of the same rows, as decode.cpp computes them.

#pragma once

#include <cstdint>

template <typename T, typename Y>
struct Part {
  const T *weight, *bias;
  Y* y;
  int64_t outputs;
};
