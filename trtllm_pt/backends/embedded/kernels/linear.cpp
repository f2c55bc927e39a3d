// The ops on packed weights: pack, linear, linear_swiglu, head, gather_rows (ops.h).
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "checks.h"
#include "multiply.h"
#include "ops.h"
#include "parallel.h"

namespace trtllm_pt {

Tensor pack(const Tensor& w) {
  TORCH_CHECK(w.dim() >= 2, "pack: w must have at least 2 dimensions, has shape ", w.sizes());
  const int64_t e = inputs_per_step(is_bf16(w, "pack: w")), n = w.size(-2), inputs = w.size(-1);
  const int64_t tiles = tiles_of(n), steps = (inputs + e - 1) / e;
  auto shape = w.sizes().vec();
  shape.resize(shape.size() - 2);
  const int64_t lead = c10::multiply_integers(shape);
  Tensor padded = at::constant_pad_nd(w, {0, steps * e - inputs, 0, tiles * kTile - n});
  shape.insert(shape.end(), {tiles, steps, kTile * e});
  return padded.reshape({lead, tiles, kTile, steps, e}).permute({0, 1, 3, 2, 4}).contiguous().view(shape);
}

namespace {

// Returns y [K, T, n] for all tracks. gate_to_up is that of Linear, between the two matrices of a track.
Tensor multiply_tracks(const Tensor& x, const Tensor& w, const Form& form, const OptionalTensor& bias, int64_t n,
                       int64_t gate_to_up) {
  const bool bf16 = x.scalar_type() == at::kBFloat16;
  const int64_t K = x.size(0), T = x.size(1), size = x.element_size();
  Tensor y = at::empty({K, T, n}, x.options()), operand, sums, scales;
  if (form.integer) {
    QuantizedRows rows = quantize_rows(x, form);
    operand = rows.codes, sums = rows.sums, scales = rows.scales;
  } else {
    operand = as_operand(x), sums = group_sums(operand, bf16, form);
  }
  std::vector<Product> products;
  for (int64_t k = 0; k < K; k++)
    products.push_back({bytes(operand) + k * T * operand.size(-1) * operand.element_size(),
                        sums.defined() ? sums.const_data_ptr<float>() + k * T * form.groups : nullptr,
                        scales.defined() ? scales.const_data_ptr<float>() + k * T : nullptr, T,
                        bytes(w) + k * w.stride(0) * w.element_size(), bias ? bytes(*bias) + k * n * size : nullptr,
                        mutable_bytes(y) + k * T * n * size});
  Linear shape = common_shape(bf16, form, operand, n, bf16 ? Kind::kBFloat16 : Kind::kFloat, 0, n);
  shape.gate_to_up = gate_to_up;
  multiply(products, shape, operand.element_size(), size);
  return y;
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t n, at::OptionalIntArrayRef form) {
  check_dims(x, "linear: x", 3);
  is_bf16(x, "linear: x");
  const Form found = check_packed(w, "linear: w", x, {x.size(0)}, n, x.size(2), form);
  if (bias) check(*bias, "linear: bias", x.scalar_type(), {x.size(0), n});
  return multiply_tracks(x, w, found, bias, n, 0);
}

Tensor linear_swiglu(const Tensor& x, const Tensor& w, int64_t n, at::OptionalIntArrayRef form) {
  check_dims(x, "linear_swiglu: x", 3);
  is_bf16(x, "linear_swiglu: x");
  const Form found = check_packed(w, "linear_swiglu: w", x, {x.size(0), 2}, n, x.size(2), form);
  check_pairs(found, "linear_swiglu: n", n);
  return multiply_tracks(x, w, found, std::nullopt, n, w.stride(1) * w.element_size());
}

Tensor head(const Tensor& x, const Tensor& table, const Tensor& first_row, int64_t n, at::OptionalIntArrayRef form) {
  check_dims(x, "head: x", 2);
  const bool bf16 = is_bf16(x, "head: x");
  check_dims(table, "head: table", form ? 2 : 3);
  const int64_t T = x.size(0), rows = table.size(0) * kTile;
  const Form found = check_packed(table, "head: table", x, {}, rows, x.size(1), form);
  check_not_integer(found, "head");
  check(first_row, "head: first", at::kLong, {1});
  const int64_t first = *first_row.const_data_ptr<int64_t>(), count = std::clamp<int64_t>(rows - first, 0, n);
  TORCH_CHECK(first >= 0, "head: first must not be negative, is ", first);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  auto options = x.options().dtype(at::kFloat);
  if (count == 0) return at::full({T, n}, kNever, options);
  Tensor y = count == n ? at::empty({T, n}, options) : at::full({T, n}, kNever, options);
  // The product begins at a whole tile, whose outputs before `first` are computed but not stored.
  const Tensor operand = as_operand(x), sums = group_sums(operand, bf16, found);
  const int64_t begin = first % kTile, float_bytes = 4;
  Product product{bytes(operand),
                  found.zeros ? sums.const_data_ptr<float>() : nullptr,
                  nullptr,
                  T,
                  bytes(table) + first / kTile * found.tile,
                  nullptr,
                  mutable_bytes(y) - begin * float_bytes};
  multiply({product}, common_shape(bf16, found, operand, n, Kind::kFloat, begin, begin + count), operand.element_size(),
           float_bytes);
  return y;
}

namespace {

// y[i] = scale * code of input i, for one output of an int8 tile with one group.
template <class T>
void expand_row(const char* tile, const Form& form, int64_t output, int64_t inputs, T* y) {
  const float scale = static_cast<float>(reinterpret_cast<const T*>(tile)[output]);
  const auto* code = reinterpret_cast<const int8_t*>(tile + form.header) + output;
  for (int64_t i = 0; i < inputs; i++) y[i] = static_cast<T>(scale * static_cast<float>(code[i * kTile]));
}

}  // namespace

Tensor gather_rows(const Tensor& ids, const Tensor& table, int64_t width, at::OptionalIntArrayRef form,
                   std::optional<at::ScalarType> dtype) {
  check_dims(ids, "gather_rows: ids", 1);
  check_dims(table, "gather_rows: table", form ? 2 : 3);
  const int64_t T = ids.size(0), rows = table.size(0) * kTile;
  check(ids, "gather_rows: ids", at::kLong, {T});
  Tensor y = at::empty({T, width}, table.options().dtype(dtype.value_or(table.scalar_type())));
  const Form found = check_packed(table, "gather_rows: table", y, {}, rows, width, form);
  TORCH_CHECK(found.bits == 0 || (found.bits == 8 && found.groups == 1 && !found.zeros),
              "gather_rows: form must be {8, 1, 0} for a quantised table, is ", *form);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < T; t++)
    TORCH_CHECK(id[t] >= 0 && id[t] < rows, "gather_rows: id ", id[t], " of token ", t, " is outside the table's ",
                rows, " rows");
  const int64_t size = y.element_size();
  for_each_row(T, width, [&](int64_t t) {
    const char* tile = bytes(table) + id[t] / kTile * found.tile;
    char* to = mutable_bytes(y) + t * width * size;
    const int64_t output = id[t] % kTile;
    if (found.bits == 0)
      for (int64_t at = 0; at < width * size; at += kStepBytes)
        memcpy(to + at, tile + at * kTile + output * kStepBytes, std::min<int64_t>(kStepBytes, width * size - at));
    else if (size == 2)
      expand_row(tile, found, output, width, reinterpret_cast<at::BFloat16*>(to));
    else
      expand_row(tile, found, output, width, reinterpret_cast<float*>(to));
  });
  return y;
}

}  // namespace trtllm_pt
