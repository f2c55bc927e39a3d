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
Tensor multiply_tracks(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t n, int64_t gate_to_up) {
  const bool bf16 = x.scalar_type() == at::kBFloat16;
  const int64_t K = x.size(0), T = x.size(1), size = x.element_size();
  Tensor y = at::empty({K, T, n}, x.options()), operand = as_operand(x);
  std::vector<Product> products;
  for (int64_t k = 0; k < K; k++)
    products.push_back({bytes(operand) + k * T * operand.size(-1) * operand.element_size(), T,
                        bytes(w) + k * w.stride(0) * size, bias ? bytes(*bias) + k * n * size : nullptr,
                        mutable_bytes(y) + k * T * n * size});
  Linear shape = common_shape(bf16, operand, w.size(-2), n, bf16 ? Kind::kBFloat16 : Kind::kFloat, 0, n);
  shape.gate_to_up = gate_to_up;
  multiply(products, shape, operand.element_size(), size);
  return y;
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t n) {
  check_dims(x, "linear: x", 3);
  is_bf16(x, "linear: x");
  check_packed(w, "linear: w", x, {x.size(0)}, n, x.size(2));
  if (bias) check(*bias, "linear: bias", x.scalar_type(), {x.size(0), n});
  return multiply_tracks(x, w, bias, n, 0);
}

Tensor linear_swiglu(const Tensor& x, const Tensor& w, int64_t n) {
  check_dims(x, "linear_swiglu: x", 3);
  is_bf16(x, "linear_swiglu: x");
  check_packed(w, "linear_swiglu: w", x, {x.size(0), 2}, n, x.size(2));
  return multiply_tracks(x, w, std::nullopt, n, w.stride(1) * w.element_size());
}

Tensor head(const Tensor& x, const Tensor& table, const Tensor& first_row, int64_t n) {
  check_dims(x, "head: x", 2);
  check_dims(table, "head: table", 3);
  const bool bf16 = is_bf16(x, "head: x");
  const int64_t T = x.size(0), rows = table.size(0) * kTile;
  check_packed(table, "head: table", x, {}, rows, x.size(1));
  check(first_row, "head: first", at::kLong, {1});
  const int64_t first = *first_row.const_data_ptr<int64_t>(), count = std::clamp<int64_t>(rows - first, 0, n);
  TORCH_CHECK(first >= 0, "head: first must not be negative, is ", first);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  auto options = x.options().dtype(at::kFloat);
  if (count == 0) return at::full({T, n}, kNever, options);
  Tensor y = count == n ? at::empty({T, n}, options) : at::full({T, n}, kNever, options);
  // The product begins at a whole tile, whose outputs before `first` are computed but not stored.
  Tensor operand = as_operand(x);
  const int64_t begin = first % kTile, tile_bytes = table.size(1) * kLineBytes, float_bytes = 4;
  Product product{bytes(operand), T, bytes(table) + first / kTile * tile_bytes, nullptr,
                  mutable_bytes(y) - begin * float_bytes};
  multiply({product}, common_shape(bf16, operand, table.size(1), n, Kind::kFloat, begin, begin + count),
           operand.element_size(), float_bytes);
  return y;
}

Tensor gather_rows(const Tensor& ids, const Tensor& table, int64_t width) {
  check_dims(ids, "gather_rows: ids", 1);
  check_dims(table, "gather_rows: table", 3);
  const int64_t T = ids.size(0), rows = table.size(0) * kTile, size = table.element_size(), steps = table.size(1);
  check(ids, "gather_rows: ids", at::kLong, {T});
  check_packed(table, "gather_rows: table", table, {}, rows, width);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < T; t++)
    TORCH_CHECK(id[t] >= 0 && id[t] < rows, "gather_rows: id ", id[t], " of token ", t, " is outside the table's ",
                rows, " rows");
  Tensor y = at::empty({T, width}, table.options());
  for_each_row(T, width, [&](int64_t t) {
    const char* from = bytes(table) + id[t] / kTile * steps * kLineBytes + id[t] % kTile * kStepBytes;
    char* to = mutable_bytes(y) + t * width * size;
    for (int64_t step = 0; step < steps; step++)
      memcpy(to + step * kStepBytes, from + step * kLineBytes,
             std::min<int64_t>(kStepBytes, width * size - step * kStepBytes));
  });
  return y;
}

}  // namespace trtllm_pt
