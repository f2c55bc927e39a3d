// Computes one panel of a linear layer: the product, then bias or SwiGLU while the sums are in the cache. Part of
// path.cpp.
#pragma once
#include "product.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

constexpr int64_t kPanelWidth = kPanel * kTile;

// Computes y from sums [rows, kPanelWidth]: y = sums + bias, or y = silu(sums of the gate) * (sums of up).
template <class W, class Y>
void write_outputs(const Linear& a, const float* sums) {
  const auto* bias = static_cast<const typename W::Value*>(a.bias);
  const float* ups = a.gate_to_up ? sums + a.tiles / 2 * kTile : nullptr;
  for (int64_t row = 0; row < a.rows; row++) {
    Y* y = static_cast<Y*>(a.y) + row * a.y_stride;
    for (int64_t j = a.begin, n; j < a.end; j += n) {
      n = min(kLanes, a.end - j);
      Floats v = load(sums + row * kPanelWidth + j, n);
      if (bias) v += load(bias + j, n);
      if (ups) v = silu(v) * load(ups + row * kPanelWidth + j, n);
      store(y + j, v, n);
    }
  }
}

// If all rows fit into one block, the weights are read once and prefetched kAhead bytes ahead. Otherwise each block
// reads the weights again, so they are read in chunks of kChunk steps, which stay in the caches while the next chunk is
// prefetched.
template <class W>
void panel_sums(const Linear& a, float* sums) {
  constexpr int64_t kAhead = 1024, kChunk = 256;
  const bool once = a.rows <= kMaxRows;
  const int64_t chunk = once ? a.steps : kChunk, tile = a.steps * kLineBytes;
  const int64_t per_matrix = a.gate_to_up ? a.tiles / 2 : a.tiles;
  for (int64_t step = 0; step < a.steps; step += chunk) {
    const int64_t done = step * kLineBytes;
    const char* tiles[kPanel];
    for (int64_t n = 0; n < a.tiles; n++) tiles[n] = a.w + n % per_matrix * tile + n / per_matrix * a.gate_to_up + done;
    Prefetch prefetch{once ? kAhead : chunk * kLineBytes, 1, tile - done, a.to_next_panel ? a.to_next_panel - tile : 0};
    const auto* x = static_cast<const typename W::Operand*>(a.x) + step * W::kInputs;
    product<W>(a.rows, x, a.x_stride, {tiles, a.tiles, 1, min(chunk, a.steps - step)}, prefetch, step > 0, sums,
               kPanelWidth);
  }
}

template <class W>
void linear_of(const Linear& a) {
  float sums[kLinearRows * kPanelWidth];
  panel_sums<W>(a, sums);
  if (a.y_kind == Kind::kFloat)
    write_outputs<W, float>(a, sums);
  else if (a.y_kind == Kind::kRounded)
    write_outputs<W, Rounded>(a, sums);
  else
    write_outputs<W, BFloat16>(a, sums);
}

void linear(const Linear& a) { a.bf16 ? linear_of<BFloat16Weights>(a) : linear_of<FloatWeights>(a); }

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
