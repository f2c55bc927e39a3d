// Computes one panel of a linear layer: the product, then bias or SwiGLU while the sums are in the cache. Part of
// path.cpp.
#pragma once
#include "codes.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

constexpr int64_t kPanelWidth = kPanel * kTile;

// Computes y from sums [rows, kPanelWidth]: y = sums + bias, or y = silu(sums of the gate) * (sums of up).
// T: the model's dtype.
template <class T, class Y>
void write_outputs(const Linear& a, const float* sums) {
  const auto* bias = static_cast<const T*>(a.bias);
  const float* ups = a.gate_to_up ? sums + a.tiles / 2 * kTile : nullptr;
  for (int64_t row = 0; row < a.rows; row++) {
    Y* y = static_cast<Y*>(a.y) + row * a.y_stride;
    const Floats scale = broadcast(a.x_scales ? a.x_scales[row] : 1.f);
    for (int64_t j = a.begin, n; j < a.end; j += n) {
      n = min(kLanes, a.end - j);
      Floats v = load(sums + row * kPanelWidth + j, n);
      if (a.x_scales) v *= scale;
      if (bias) v += load(bias + j, n);
      if (ups) {
        const Floats up = load(ups + row * kPanelWidth + j, n);
        v = silu(v) * (a.x_scales ? up * scale : up);
      }
      store(y + j, v, n);
    }
  }
}

// Sets `tiles` to the panel's kPanel tiles, `offset` bytes behind their beginnings. A panel with fewer tiles repeats
// its last one.
INLINE void find_tiles(const Linear& a, int64_t offset, const char** tiles) {
  const int64_t per_matrix = a.gate_to_up ? a.tiles / 2 : a.tiles;
  for (int64_t i = 0; i < kPanel; i++) {
    const int64_t n = min(i, a.tiles - 1);
    tiles[i] = a.w + n % per_matrix * a.form.tile + n / per_matrix * a.gate_to_up + offset;
  }
}

// Bytes from the end of a tile to the tile that is read after it.
INLINE int64_t skip(const Linear& a) { return a.to_next_panel ? a.to_next_panel - a.form.tile : 0; }

// If all rows fit into one block, the weights are read once and prefetched kAhead bytes ahead. Otherwise each block
// reads the weights again, so they are read in chunks of kChunk steps, which stay in the caches while the next chunk is
// prefetched. Codes are read more slowly, but a line of them has more weights.
constexpr int64_t kAhead = 1024, kAheadOfCodes = 2048, kChunk = 256;

template <class W>
void panel_sums(const Linear& a, float* sums) {
  const bool once = a.rows <= kMaxRows;
  const int64_t chunk = once ? a.steps : kChunk;
  for (int64_t step = 0; step < a.steps; step += chunk) {
    const int64_t done = step * kLineBytes;
    const char* tiles[kPanel];
    find_tiles(a, done, tiles);
    Prefetch prefetch{once ? kAhead : chunk * kLineBytes, 1, a.form.tile - done, skip(a)};
    const auto* x = static_cast<const typename W::Operand*>(a.x) + step * W::kLineInputs;
    product<W>(a.rows, x, a.x_stride, {tiles, a.tiles, 1, min(chunk, a.steps - step)}, prefetch, step > 0, sums,
               kPanelWidth);
  }
}

// The sums of a panel with codes C and scales in the model's dtype. Few rows multiply with all groups in one call; more
// rows with one group at a time, and with a long one in spans whose weights stay in the caches.
template <class C>
void coded_sums(const Linear& a, float* sums) {
  typedef typename C::Wide W;
  constexpr int64_t kSpan = 512;
  float codes[kLinearRows * kPanelWidth];  // sums of the spans of a group
  char wide[kPanel * kSpan / W::kLineInputs * kLineBytes];
  const auto* x = static_cast<const typename W::Operand*>(a.x);
  const int64_t value_bytes = a.bf16 ? sizeof(BFloat16) : sizeof(float), inputs = a.steps * kStepBytes / value_bytes;
  const int64_t group = inputs / a.form.groups, scales = kTile * value_bytes;
  const char *tiles[kPanel], *headers[kPanel];
  find_tiles(a, 0, headers);
  Scaling scaling{
      headers, a.bf16,     a.form.zeros ? a.form.groups * scales : 0, a.to_next_panel, a.x_sums, a.form.groups,
      sums,    kPanelWidth};
  if constexpr (C::kIntegers) scaling.offset = C::kOffset;
  Prefetch prefetch{kAheadOfCodes, 1, a.form.tile - a.form.header, skip(a) + a.form.header};
  if (a.rows <= kMaxRows && !W::kTiled) {
    find_tiles(a, a.form.header, tiles);
    if constexpr (!W::kTiled)
      product<C>(a.rows, x, a.x_stride, {tiles, kPanel, a.form.groups, group / C::kLineInputs}, prefetch, false, codes,
                 kPanelWidth, scaling);
    return;
  }
  for (int64_t first = 0, size; first < inputs; first += size) {
    size = min(min(group, kSpan), group - first % group);
    const int64_t done = first / C::kLineInputs * kLineBytes;
    const bool last = (first + size) % group == 0;
    find_tiles(a, a.form.header + done, tiles);
    prefetch.end = a.form.tile - a.form.header - done;
    product_of_codes<C>(a.rows, x + first, a.x_stride, {tiles, kPanel, 1, size / C::kLineInputs}, prefetch,
                        first % group > 0, codes, kPanelWidth, last ? scaling : Scaling{}, wide);
    if (last) scaling.group++;
  }
}

// W: the model's weights where they are not quantised. Wide: what codes are expanded to.
template <class W, class Wide>
INLINE void sums_of(const Linear& a, float* sums) {
  if (a.form.bits == 0)
    panel_sums<W>(a, sums);
  else if (a.form.bits == 8)
    coded_sums<Int8Codes<Wide>>(a, sums);
  else
    coded_sums<Int4Codes<Wide>>(a, sums);
}

// What another path computes with the same instructions is not compiled again.
void linear(const Linear& a) {
#if defined(__AMX_BF16__)
  if (a.form.integer) return avx512_bf16::table.linear(a);
#endif
#if defined(__AVX512BF16__)
  if (!a.bf16 && !a.form.integer) return avx512::table.linear(a);
#endif
  float sums[kLinearRows * kPanelWidth];
  if (a.form.integer) {
#if !defined(__AMX_BF16__)
    a.form.bits == 8 ? coded_sums<IntegersOfInt8>(a, sums) : coded_sums<IntegersOfInt4>(a, sums);
#endif
  } else if (a.bf16) {
    sums_of<BFloat16Weights, WideBFloat16>(a, sums);
  } else {
#if !defined(__AVX512BF16__)
    sums_of<FloatWeights, FloatWeights>(a, sums);
#endif
  }
  if (!a.bf16)
    write_outputs<float, float>(a, sums);
  else if (a.y_kind == Kind::kFloat)
    write_outputs<BFloat16, float>(a, sums);
  else if (a.y_kind == Kind::kRounded)
    write_outputs<BFloat16, Rounded>(a, sums);
  else
    write_outputs<BFloat16, BFloat16>(a, sums);
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
