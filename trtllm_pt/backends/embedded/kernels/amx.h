// The product with bfloat16 weights on AMX's tile registers of 16 rows of 64 bytes. product.h includes this file in
// path.cpp.
//
// 16 steps of a packed tile of weights in memory have the layout of a register. One TDPBF16PS multiplies them with 32
// inputs of up to 16 rows: starting from zero, it sums the products of even inputs and those of odd inputs, adds the
// two sums, and adds the result to the accumulator (Intel SDM volume 2). So the order of a sum depends on where the
// steps are divided into groups of 16, which is done from the first step of a segment on. A caller that divides a
// product between calls must therefore cut it at multiples of kTileSteps. The number of rows in an instruction does not
// change the order.

#pragma once
#include "product.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

constexpr int64_t kTileSteps = 16, kTileRows = 16;

// The operand of LDTILECFG. Registers 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 weights.
struct alignas(64) TileShapes {
  uint8_t palette, start_row, zero[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// GCC's intrinsics accept a register only as a literal, and the compiler does not know that they read memory, so it
// could move stores to an operand behind them.
INLINE void shape_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
INLINE void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTo>
INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(kTo) : "memory");
}
template <int kFrom>
INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(kFrom) : "memory");
}
template <int kTo>
INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"n"(kTo) : "memory");
}
template <int kSum, int kLeft, int kRight>
INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(kSum), "n"(kLeft), "n"(kRight) : "memory");
}

// Returns the shapes of the registers for up to 32 rows of x and `steps` steps.
INLINE TileShapes shapes_of(int64_t rows, int64_t steps) {
  TileShapes shapes{};
  shapes.palette = 1;
  const int64_t upper = min(rows, kTileRows), lower = rows > kTileRows ? rows - kTileRows : upper;
  const int64_t heights[8] = {upper, upper, lower, lower, upper, lower, steps, steps};
  for (int i = 0; i < 8; i++) {
    shapes.rows[i] = static_cast<uint8_t>(heights[i]);
    shapes.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? steps * 4 : 64);
  }
  return shapes;
}

// The steps of each segment that are multiplied with registers of one shape: `count` times `steps` steps from `first`.
struct TileSteps {
  int64_t first, steps, count;
};

// Calls f<0>() to f<kCount - 1>().
template <int kCount, int kFirst = 0, class F>
INLINE void unrolled(const F& f) {
  if constexpr (kFirst < kCount) {
    f.template operator()<kFirst>();
    unrolled<kCount, kFirst + 1>(f);
  }
}

// Computes kRows x kColumns registers of sums, at most 2 x 2 or 1 x 4. It is not inlined because its loop needs all
// general registers.
template <int kRows, int kColumns>
__attribute__((noinline)) void tile_block(const BFloat16* x, int64_t x_stride, Tiles t, TileSteps part, bool add,
                                          float* y, int64_t y_stride) {
  const int64_t x_bytes = x_stride * 2, y_bytes = y_stride * 4;
  unrolled<kRows * kColumns>([&]<int i>() {
    constexpr int row = i / kColumns, column = i % kColumns, sum = 2 * row + column;
    if (add)
      load_tile<sum>(y + row * kTileRows * y_stride + column * kTile, y_bytes);
    else
      clear_tile<sum>();
  });
  x += part.first * 2;
  for (int64_t s = 0; s < t.segments; s++, t.start += t.count, x += t.lines * 2) {
    for (int64_t k = 0; k < part.count; k++) {
      const BFloat16* left = x + k * kTileSteps * 2;
      const int64_t w = (part.first + k * kTileSteps) * kLineBytes;
      load_tile<4>(left, x_bytes);
      if constexpr (kRows == 2) load_tile<5>(left + kTileRows * x_stride, x_bytes);
      unrolled<kColumns>([&]<int n>() {
        constexpr int right = 6 + n % 2;
        load_tile<right>(t.start[n] + w, kLineBytes);
        multiply_tiles<n, 4, right>();
        if constexpr (kRows == 2) multiply_tiles<2 + n, 5, right>();
      });
    }
  }
  unrolled<kRows * kColumns>([&]<int i>() {
    constexpr int row = i / kColumns, column = i % kColumns, sum = 2 * row + column;
    store_tile<sum>(y + row * kTileRows * y_stride + column * kTile, y_bytes);
  });
}

template <int kRows, int kColumns = kRows == 2 ? 2 : 4>
INLINE int64_t widest_tile_block(int64_t left, const BFloat16* x, int64_t x_stride, Tiles t, TileSteps part, bool add,
                                 float* y, int64_t y_stride) {
  if constexpr (kColumns > 1) {
    if (left < kColumns) return widest_tile_block<kRows, kColumns - 1>(left, x, x_stride, t, part, add, y, y_stride);
  }
  tile_block<kRows, kColumns>(x, x_stride, t, part, add, y, y_stride);
  return kColumns;
}

INLINE void tile_rows(int64_t rows, const BFloat16* x, int64_t x_stride, Tiles t, TileSteps part, bool add, float* y,
                      int64_t y_stride) {
  for (int64_t row = 0, size, shaped = 0; row < rows; row += size) {
    size = min(2 * kTileRows, rows - row);
    if (size != shaped) shape_tiles(shapes_of(size, part.steps));
    shaped = size;
    Tiles columns = t;
    for (int64_t done = 0, width; done < t.count; done += width, columns.start += width) {
      const BFloat16* xs = x + row * x_stride;
      float* ys = y + row * y_stride + done * kTile;
      width = size > kTileRows ? widest_tile_block<2>(t.count - done, xs, x_stride, columns, part, add, ys, y_stride)
                               : widest_tile_block<1>(t.count - done, xs, x_stride, columns, part, add, ys, y_stride);
    }
  }
}

// Multiplies whole registers of all segments first, then the remaining steps of each segment. Their registers have
// another shape, and LDTILECFG clears the sums, so these are kept in y in between, without loss of precision. Callers
// scale the sums themselves.
template <>
void product<BFloat16Weights>(int64_t rows, const BFloat16* x, int64_t x_stride, Tiles t, Prefetch, bool add, float* y,
                              int64_t y_stride, const Scaling&) {
  const int64_t whole = t.lines / kTileSteps, rest = t.lines % kTileSteps;
  if (whole > 0) tile_rows(rows, x, x_stride, t, {0, kTileSteps, whole}, add, y, y_stride);
  if (rest > 0) tile_rows(rows, x, x_stride, t, {whole * kTileSteps, rest, 1}, add || whole > 0, y, y_stride);
  release_tiles();  // tile registers in use make every context switch and signal frame larger
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
