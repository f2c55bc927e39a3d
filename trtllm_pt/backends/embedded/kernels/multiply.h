// Products with packed weights, divided over the threads. The linear layers, the head and the experts use them.
#pragma once
#include <vector>

#include "checks.h"
#include "paths.h"

namespace trtllm_pt {

// y [rows, outputs] = x [rows, inputs] times packed weights.
struct Product {
  const char* x;
  const float* x_sums;    // of row 0, or null
  const float* x_scales;  // of row 0, or null
  int64_t rows;
  const char* w;
  const char* bias;  // or null
  char* y;           // of output 0
};

// Returns x [.., I] as the path needs the left side of a product: with rows of whole steps, and in float32 if the path
// has no instruction for bfloat16.
Tensor as_operand(const Tensor& x);

// The left side of a product of integers (paths.h).
struct QuantizedRows {
  Tensor codes, sums, scales;  // [rows, I], float32 [rows, groups], float32 [rows]
};

// Quantises x [.., I] for weights of a form.
QuantizedRows quantize_rows(const Tensor& x, const Form& form);

// Returns the sums of x over each group of inputs, float32 [rows of `operand`, groups], or an undefined tensor if the
// weights have no zero points.
Tensor group_sums(const Tensor& operand, bool bf16, const Form& form);

// Returns the fields that all products of one call have in common: outputs [begin, end) from rows of `operand`.
Linear common_shape(bool bf16, const Form& form, const Tensor& operand, int64_t y_stride, Kind y_kind, int64_t begin,
                    int64_t end);

// Computes several products of one shape. x_bytes and y_bytes are the sizes of one element of x and of y.
void multiply(const std::vector<Product>& products, const Linear& common, int64_t x_bytes, int64_t y_bytes);

}  // namespace trtllm_pt
