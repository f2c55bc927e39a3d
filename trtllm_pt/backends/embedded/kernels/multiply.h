// Products with packed weights, divided over the threads. The linear layers, the head and the experts use them.
#pragma once
#include <vector>

#include "checks.h"
#include "paths.h"

namespace trtllm_pt {

// y [rows, outputs] = x [rows, inputs] times packed weights.
struct Product {
  const char* x;
  int64_t rows;
  const char* w;
  const char* bias;  // or null
  char* y;           // of output 0
};

// Returns x [.., I] as the path needs the left side of a product: with rows of whole steps, and in float32 if the path
// has no instruction for bfloat16.
Tensor as_operand(const Tensor& x);

// Returns the fields that all products of one call have in common: outputs [begin, end) from rows of `operand` with
// `steps` steps of inputs.
Linear common_shape(bool bf16, const Tensor& operand, int64_t steps, int64_t y_stride, Kind y_kind, int64_t begin,
                    int64_t end);

// Computes several products of one shape. x_bytes and y_bytes are the sizes of one element of x and of y.
void multiply(const std::vector<Product>& products, const Linear& common, int64_t x_bytes, int64_t y_bytes);

}  // namespace trtllm_pt
