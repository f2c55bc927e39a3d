// Checks of the ops' arguments, whose errors name the argument, its value and what it must be; and sizes of packed
// weights.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "paths.h"

namespace trtllm_pt {

using at::Tensor;

inline bool is_bf16(const Tensor& t, const char* name) {
  auto dtype = t.scalar_type();
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, name, " must be bfloat16 or float32, is ", dtype);
  return dtype == at::kBFloat16;
}

inline void check(const Tensor& t, const char* name, at::ScalarType dtype, at::IntArrayRef shape) {
  TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", dtype, ", is ", t.scalar_type());
  TORCH_CHECK(t.sizes() == shape, name, " must have shape ", shape, ", has ", t.sizes());
  TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

inline void check_dims(const Tensor& t, const char* name, int64_t dims) {
  TORCH_CHECK(t.dim() == dims, name, " must have ", dims, " dimensions, has shape ", t.sizes());
}

inline int64_t inputs_per_step(bool bf16) { return kStepBytes / (bf16 ? 2 : 4); }
inline int64_t steps_of(bool bf16, int64_t inputs) {
  return (inputs + inputs_per_step(bf16) - 1) / inputs_per_step(bf16);
}
inline int64_t tiles_of(int64_t outputs) { return (outputs + kTile - 1) / kTile; }

// Checks packed weights [*lead, outputs, inputs] in x's dtype, as the op `pack` returns them.
inline void check_packed(const Tensor& w, const char* name, const Tensor& x, std::vector<int64_t> lead, int64_t outputs,
                         int64_t inputs) {
  bool bf16 = is_bf16(x, "x");
  lead.insert(lead.end(), {tiles_of(outputs), steps_of(bf16, inputs), kTile * inputs_per_step(bf16)});
  check(w, name, x.scalar_type(), lead);
}

inline const char* bytes(const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); }
inline char* mutable_bytes(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }

}  // namespace trtllm_pt
