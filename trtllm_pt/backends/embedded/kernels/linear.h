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
    for (int64_t j = a.begin, n; j < a.end; j += n) {
      n = min(kLanes, a.end - j);
      Floats v = load(sums + row * kPanelWidth + j, n);
      if (bias) v += load(bias + j, n);
      if (ups) v = silu(v) * load(ups + row * kPanelWidth + j, n);
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
// prefetched.
constexpr int64_t kAhead = 1024, kChunk = 256;

template <class W>
void panel_sums(const Linear& a, float* sums) {
  const bool once = a.rows <= kMaxRows;
  const int64_t chunk = once ? a.steps : kChunk;
  for (int64_t step = 0; step < a.steps; step += chunk) {
    const int64_t done = step * kLineBytes;
    const char* tiles[kPanel];
    find_tiles(a, done, tiles);
    Prefetch prefetch{nullptr, once ? kAhead : chunk * kLineBytes, 1, a.form.tile - done, skip(a)};
    const auto* x = static_cast<const typename W::Operand*>(a.x) + step * W::kInputs;
    product<W>(a.rows, x, a.x_stride, {tiles, a.tiles, 1, min(chunk, a.steps - step)}, prefetch, step > 0, sums,
               kPanelWidth);
  }
}

// sums (+)= scale * (codes - zero * x) for one group of inputs, where `codes` are the sums of x * code.
template <class T>
INLINE void add_group(const Linear& a, int64_t group, const float* codes, float* sums) {
  const char* headers[kPanel];
  find_tiles(a, group * kTile * sizeof(T), headers);
  for (int64_t j = 0; j < kPanelWidth; j += kLanes) {
    const T* scales = (const T*)headers[j / kTile] + j % kTile;
    const Floats scale = load(scales), zero = a.form.zeros ? load(scales + a.form.groups * kTile) : Floats{};
    for (int64_t row = 0, at = j; row < a.rows; row++, at += kPanelWidth) {
      Floats sum = load(codes + at);
      if (a.form.zeros) sum = mul_add(zero, broadcast(-a.x_sums[row * a.form.groups + group]), sum);
      store(sums + at, group ? mul_add(scale, sum, load(sums + at)) : scale * sum);
    }
  }
}

// The sums of a panel with codes C, group by group. Few rows multiply with the codes themselves; for more, spans of
// inputs are expanded first.
template <class C, class T>
void coded_sums(const Linear& a, float* sums) {
  typedef typename C::Wide W;
  constexpr int64_t kSpan = 512;
  float codes[kLinearRows * kPanelWidth];
  char wide[kPanel * kSpan / W::kInputs * kLineBytes];
  const bool once = a.rows <= kMaxRows && !W::kTiled;
  const int64_t inputs = a.steps * kStepBytes / sizeof(T), group = inputs / a.form.groups;
  const int64_t span = once ? group : min(group, kSpan);
  for (int64_t first = 0, size; first < inputs; first += size) {
    size = min(span, group - first % group);
    const int64_t done = a.form.header + first / C::kLineInputs * kLineBytes, lines = size / C::kLineInputs;
    const char* tiles[kPanel];
    find_tiles(a, done, tiles);
    const auto* x = static_cast<const typename W::Operand*>(a.x) + first;
    Prefetch prefetch{nullptr, kAhead, 1, a.form.tile - done, skip(a)};
    const bool add = first % group > 0;
    if (once) {
      if constexpr (!W::kTiled)
        product<C>(a.rows, x, a.x_stride, {tiles, kPanel, 1, lines}, prefetch, add, codes, kPanelWidth);
    } else {
      expand<C>(tiles, lines, wide);
      const int64_t tile = size / W::kInputs * kLineBytes;
      const char* copies[kPanel] = {wide, wide + tile, wide + 2 * tile, wide + 3 * tile};
      prefetch.tiles = tiles, prefetch.every = C::kSteps, prefetch.next = lines * kLineBytes;
      product<W>(a.rows, x, a.x_stride, {copies, kPanel, 1, size / W::kInputs}, prefetch, add, codes, kPanelWidth);
    }
    if ((first + size) % group == 0) add_group<T>(a, first / group, codes, sums);
  }
}

// T: the model's dtype. W: its weights where they are not quantised. Wide: what codes are expanded to.
template <class T, class W, class Wide>
void linear_of(const Linear& a) {
  float sums[kLinearRows * kPanelWidth];
  if (a.form.bits == 0)
    panel_sums<W>(a, sums);
  else if (a.form.bits == 8)
    coded_sums<Int8Codes<Wide>, T>(a, sums);
  else
    coded_sums<Int4Codes<Wide>, T>(a, sums);
  if (a.y_kind == Kind::kFloat)
    write_outputs<T, float>(a, sums);
  else if (a.y_kind == Kind::kRounded)
    write_outputs<T, Rounded>(a, sums);
  else
    write_outputs<T, BFloat16>(a, sums);
}

void linear(const Linear& a) {
  a.bf16 ? linear_of<BFloat16, BFloat16Weights, WideBFloat16>(a) : linear_of<float, FloatWeights, FloatWeights>(a);
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
