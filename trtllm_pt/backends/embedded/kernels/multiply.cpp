// Divides several products into panels and blocks of rows, and runs them on the threads.
#include "multiply.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "parallel.h"

namespace trtllm_pt {
namespace {

// Returns the number of panels, contiguous in memory, that a thread takes at once, so that it reads what it prefetches.
int64_t panels_per_unit(int64_t panels, int64_t panel_bytes) {
  constexpr int64_t kUnitBytes = 256 << 10, kUnitsPerThread = 8;
  return std::max<int64_t>(1, std::min(kUnitBytes / panel_bytes, panels / (kUnitsPerThread * at::get_num_threads())));
}

// The panels of all products, numbered one product after the other.
struct Panels {
  const std::vector<Product>& products;
  const Linear& common;
  int64_t x_bytes, y_bytes;
  int64_t matrices = common.gate_to_up ? 2 : 1, tiles = kPanel / matrices, width = tiles * kTile;  // of a panel
  int64_t per_product = (common.end + width - 1) / width;
  int64_t count = static_cast<int64_t>(products.size()) * per_product;
  int64_t tile_bytes = common.form.tile;

  const char* weights(int64_t number) const {
    return products[number / per_product].w + number % per_product * tiles * tile_bytes;
  }

  // Computes panel `number` for rows [row, row + kLinearRows) and prefetches panel `next`, if there is such a panel.
  void multiply(int64_t number, int64_t row, int64_t next) const {
    const Product& p = products[number / per_product];
    const int64_t panel = number % per_product, output = panel * width;
    if (row >= p.rows) return;
    Linear a = common;
    a.rows = std::min(kLinearRows, p.rows - row);
    a.x = p.x + row * a.x_stride * x_bytes;
    a.x_sums = p.x_sums ? p.x_sums + row * a.form.groups : nullptr;
    a.x_scales = p.x_scales ? p.x_scales + row : nullptr;
    a.w = weights(number);
    a.tiles = std::min(tiles, tiles_of(common.end) - panel * tiles) * matrices;
    a.bias = p.bias ? p.bias + output * (a.bf16 ? 2 : 4) : nullptr;
    a.y = p.y + (row * a.y_stride + output) * y_bytes;
    a.begin = std::max<int64_t>(0, common.begin - output);
    a.end = std::min(width, common.end - output);
    a.to_next_panel = next < count ? weights(next) - a.w : 0;
    path().linear(a);
  }
};

}  // namespace

Tensor as_operand(const Tensor& x) {
  bool bf16 = x.scalar_type() == at::kBFloat16;
  Tensor y = bf16 && path().operand == Kind::kRounded ? x.to(at::kFloat) : x;
  if (bf16 && x.size(-1) % 2) y = at::constant_pad_nd(y, {0, 1});
  return y.contiguous();
}

QuantizedRows quantize_rows(const Tensor& x, const Form& form) {
  const Tensor rows = x.contiguous();
  const int64_t inputs = x.size(-1), count = x.numel() / inputs, row_bytes = inputs * x.element_size();
  const auto floats = x.options().dtype(at::kFloat);
  QuantizedRows y{at::empty({count, inputs}, x.options().dtype(path().code_bytes == 1 ? at::kChar : at::kShort)),
                  at::empty({count, form.groups}, floats), at::empty({count}, floats)};
  auto* sums = y.sums.mutable_data_ptr<float>();
  auto* scales = y.scales.mutable_data_ptr<float>();
  char* codes = mutable_bytes(y.codes);
  for_each_row(count, inputs, [&](int64_t row) {
    scales[row] = path().quantize(x.scalar_type() == at::kBFloat16, bytes(rows) + row * row_bytes, form, inputs,
                                  codes + row * inputs * path().code_bytes, sums + row * form.groups);
  });
  return y;
}

Tensor group_sums(const Tensor& operand, bool bf16, const Form& form) {
  if (!form.zeros) return {};
  const int64_t inputs = operand.size(-1), rows = operand.numel() / inputs;
  Tensor sums = at::empty({rows, form.groups}, operand.options().dtype(at::kFloat));
  for_each_row(rows, inputs, [&](int64_t row) {
    path().group_sums(bf16, bytes(operand) + row * inputs * operand.element_size(), form.groups, inputs / form.groups,
                      sums.mutable_data_ptr<float>() + row * form.groups);
  });
  return sums;
}

Linear common_shape(bool bf16, const Form& form, const Tensor& operand, int64_t y_stride, Kind y_kind, int64_t begin,
                    int64_t end) {
  Linear a{};
  a.bf16 = bf16, a.form = form, a.x_stride = operand.size(-1), a.steps = steps_of(bf16, a.x_stride);
  a.y_stride = y_stride, a.y_kind = y_kind;
  a.begin = begin, a.end = end;
  return a;
}

// A unit of work is a run of panels for one block of rows. When a thread begins the last panel of its unit, it claims
// the next unit, so that it can prefetch the weights it will read then.
void multiply(const std::vector<Product>& products, const Linear& common, int64_t x_bytes, int64_t y_bytes) {
  int64_t rows = 0;
  for (const auto& p : products) rows = std::max(rows, p.rows);
  const Panels panels{products, common, x_bytes, y_bytes};
  const int64_t blocks = (rows + kLinearRows - 1) / kLinearRows;
  const int64_t run = blocks > 1 ? 1 : panels_per_unit(panels.count, kPanel * panels.tile_bytes);
  for_each_unit_claimed_ahead((panels.count + run - 1) / run * blocks, [&](int64_t unit, const auto& claim) {
    const int64_t row = unit % blocks * kLinearRows, first = unit / blocks * run;
    const int64_t last = std::min(panels.count, first + run) - 1;
    for (int64_t i = first; i < last; i++) panels.multiply(i, row, i + 1);
    const int64_t next = claim();
    panels.multiply(last, row, next / blocks * run);
    return next;
  });
}

}  // namespace trtllm_pt
