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

// Returns the form of weights: it is not given for weights that are not quantised, or {bits, groups, zeros}, or these
// and a 1 for a product of integers.
inline Form form_of(at::OptionalIntArrayRef given, const char* name, bool bf16, int64_t inputs) {
  const int64_t element = bf16 ? 2 : 4;
  const at::IntArrayRef form = given.value_or(at::IntArrayRef());
  if (!given) return {0, 1, false, 0, steps_of(bf16, inputs) * kLineBytes, false};
  TORCH_CHECK((form.size() == 3 || form.size() == 4) && (form[0] == 4 || form[0] == 8) && form[1] > 0 &&
                  inputs % (form[1] * kGroupStep) == 0,
              name, ": the form must be {4 or 8, groups, zeros} with groups of a multiple of ", kGroupStep,
              " inputs, is ", form, " for ", inputs, " inputs");
  const int64_t scales = form[1] * kTile * element * (form[2] ? 2 : 1);
  const int64_t header = (scales + kLineBytes - 1) / kLineBytes * kLineBytes;
  const bool integer = form.size() == 4 && form[3];
  TORCH_CHECK(!integer || inputs <= kMaxIntegers, name, ": a product of integers has at most ", kMaxIntegers,
              " inputs, not ", inputs);
  return {form[0], form[1], form[2] != 0, header, header + kTile * inputs * form[0] / 8, integer};
}

// Checks packed weights [*lead, outputs, inputs] and returns their form. Without a form they are in x's dtype, as the
// op `pack` returns them.
inline Form check_packed(const Tensor& w, const char* name, const Tensor& x, std::vector<int64_t> lead, int64_t outputs,
                         int64_t inputs, at::OptionalIntArrayRef form) {
  const bool bf16 = is_bf16(x, "x");
  const Form found = form_of(form, name, bf16, inputs);
  lead.push_back(tiles_of(outputs));
  if (found.bits == 0)
    lead.insert(lead.end(), {steps_of(bf16, inputs), kTile * inputs_per_step(bf16)});
  else
    lead.push_back(found.tile);
  check(w, name, found.bits ? at::kByte : x.scalar_type(), lead);
  return found;
}

inline void check_not_integer(const Form& form, const char* name) {
  TORCH_CHECK(!form.integer, name, " has no product of integers");
}

// Checks the outputs of a matrix that is computed together with another one. Quantised weights need whole panels.
inline void check_pairs(const Form& form, const char* name, int64_t outputs) {
  constexpr int64_t kPair = kPanel / 2 * kTile;
  TORCH_CHECK(form.bits == 0 || outputs % kPair == 0, name, " must be a multiple of ", kPair,
              " for quantised weights, is ", outputs);
}

inline const char* bytes(const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); }
inline char* mutable_bytes(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }

}  // namespace trtllm_pt
