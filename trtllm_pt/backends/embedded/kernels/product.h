// The product of some rows with tiles of packed weights: y[rows, tiles * 16] = (or +=) x times tiles. Part of path.cpp.
//
// Each output has one accumulator, to which products are added in ascending order of the inputs. The order does not
// depend on how many rows and tiles are computed together.
#pragma once
#include "simd.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

// kMaxRows: the most rows of x whose sums fit into the registers, together with tiles_per_block() tiles.
#if defined(__AVX2__)
constexpr int kMaxRows = 6;
#else
constexpr int kMaxRows = 2;
#endif

struct FloatWeights {
  typedef FloatWeights OneRow;           // what a single row multiplies with: the same numbers, perhaps read otherwise
  typedef float Value;                   // type of the weights in memory
  typedef float Operand;                 // type of x
  static constexpr int64_t kInputs = 1;  // inputs per step
  static constexpr int kSteps = 1;       // steps per line
  static constexpr int64_t kLineInputs = kInputs * kSteps;
  static constexpr bool kCodes = false;     // whether they are quantised, and panels are whole
  static constexpr bool kIntegers = false;  // whether the sums are of integers
  static constexpr bool kTiled = false;     // whether the sums have the order of AMX's instruction
  // Returns vector v of a step, in the form that mul_add_step takes.
  static INLINE Words step(const char* line, int, int v) { return load_bits<Words>(line + v * sizeof(Words)); }
  static INLINE Floats mul_add_step(const float* x, Words w, Floats sum) {
    return mul_add(broadcast(*x), (Floats)w, sum);
  }
};

struct BFloat16Weights {
  typedef BFloat16Weights OneRow;
  typedef BFloat16 Value;
  static constexpr int64_t kLineInputs = 2;
  static constexpr bool kCodes = false, kIntegers = false;
#if defined(__AMX_BF16__)
  static constexpr bool kTiled = true;
#else
  static constexpr bool kTiled = false;
#endif
#if defined(__AVX512BF16__)
  typedef BFloat16 Operand;
  static constexpr int64_t kInputs = 2;
  static constexpr int kSteps = 1;
  static INLINE Words step(const char* line, int, int v) { return load_bits<Words>(line + v * sizeof(Words)); }
  static INLINE Floats mul_add_step(const BFloat16* x, Words w, Floats sum) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(load_bits<int>(x)), (__m512bh)w);
  }
#else
  typedef Rounded Operand;
  static constexpr int64_t kInputs = 1;
  static constexpr int kSteps = 2;
  static INLINE Words step(const char* line, int step, int v) {
    const Words pairs = load_bits<Words>(line + v * sizeof(Words));
    return step ? pairs & 0xffff0000u : pairs << 16;
  }
  static INLINE Floats mul_add_step(const Rounded* x, Words w, Floats sum) {
    return mul_add(broadcast(x->value), (Floats)w, sum);
  }
#endif
};

// Weights of a product of integers: with VNNI, 4 inputs of an output as unsigned bytes, to which an offset was added;
// otherwise 2 inputs as int16. Sums are kept in int32, in the bits of Floats.
struct IntegerWeights {
  typedef IntegerWeights OneRow;
#if defined(__AVX512VNNI__)
  typedef int8_t Operand;
  static constexpr int64_t kInputs = 4;
#else
  typedef int16_t Operand;
  static constexpr int64_t kInputs = 2;
#endif
  static constexpr int kSteps = 1;
  static constexpr int64_t kLineInputs = kInputs;
  static constexpr bool kCodes = true, kIntegers = true, kTiled = false;
  static INLINE Words step(const char* line, int, int v) { return load_bits<Words>(line + v * sizeof(Words)); }
  static INLINE Floats mul_add_step(const Operand* x, Words w, Floats sum) {
    const int inputs = load_bits<int>(x);
#if defined(__AVX512VNNI__)
    return (Floats)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(inputs));
#elif defined(__AVX512F__)
    return (Floats)((Ints)sum + (Ints)_mm512_madd_epi16(_mm512_set1_epi32(inputs), (__m512i)w));
#elif defined(__AVX2__)
    return (Floats)((Ints)sum + (Ints)_mm256_madd_epi16(_mm256_set1_epi32(inputs), (__m256i)w));
#else
    return (Floats)((Ints)sum + (Ints)_mm_madd_epi16(_mm_set1_epi32(inputs), (__m128i)w));
#endif
  }
};

// The weights of a product: pointers [segments][count] to tiles. Segment s continues the sums of the segments before it
// with the next `lines` of weights. The segments of codes lie one behind the other, so `start` has only the first.
struct Tiles {
  const char* const* start;
  int64_t count, segments, lines;
};

// Prefetches the lines of weights that this thread reads soon, while it multiplies with those in the caches.
//
//     a tile that is read now                      the tile that is read after it
//     |=====r------------p...........|            |......
//     0     ^ line read  ^ next      end          end + skip
//
// All tiles that are read together have the same offsets, so they share one offset `next`. p advances by one line at a
// time, and from `end` it jumps to the tile that is read next (directly behind a tile there is often the neighbouring
// tile, which is being read now). Blocks of rows that read the same tiles one after the other each fetch a share of the
// lines, so that memory is always busy: block b of n fetches a line every n lines, beginning with the b-th part.
struct Prefetch {
  int64_t next = 0;   // p: bytes from the start of each tile to the line that is fetched next
  int64_t every = 0;  // lines that are read between two fetched lines; 0: fetches nothing
  int64_t end = 0;    // bytes from the start of a tile to its end
  int64_t skip = 0;   // bytes from a tile's end to the tile that is read after it

  // Returns the prefetch of block `block` of `blocks` for a product that reads `lines` lines.
  INLINE Prefetch share(int64_t block, int64_t blocks, int64_t lines) const {
    Prefetch part = *this;
    if (every) part.next += block * (lines / every) / blocks * kLineBytes;
    if (part.next >= end) part.next += skip;
    part.every *= blocks;
    return part;
  }

  // Fetches a line of each tile and advances to the next line.
  template <int kTiles>
  INLINE void fetch(const char* const* tiles) {
#pragma GCC unroll 4
    for (int n = 0; n < kTiles; n++) _mm_prefetch(tiles[n] + next, _MM_HINT_T1);
    next += kLineBytes;
    if (next == end) next += skip;
  }
};

// Scales the sums of products with codes, group by group (paths.h): y (+)= scale * (sum - zero point * sum of x).
struct Scaling {
  const char* const* scales = nullptr;  // of each tile, in the model's dtype; null: sums are not scaled
  bool bf16 = false;                    // whether they are bfloat16
  int64_t to_zeros = 0;                 // bytes from a tile's scales to its zero points; 0: there are none
  int64_t to_next_panel = 0;            // bytes from a tile to the tile that is read after it, as in Linear
  const float* x_sums = nullptr;        // [rows, groups], if there are zero points or an offset
  int64_t groups = 0;                   // of inputs
  float* y = nullptr;
  int64_t y_stride = 0;
  int offset = 0;     // of the weights of a product of integers
  int64_t group = 0;  // the present one; the first one replaces y, the others add to it

  // Returns the scaling of other rows and tiles.
  INLINE Scaling at(int64_t row, int64_t tile) const {
    Scaling part = *this;
    if (!scales) return part;
    part.scales += tile;
    if (x_sums) part.x_sums += row * groups;
    part.y += row * y_stride + tile * kTile;
    return part;
  }

  INLINE Floats load_scale(const char* p) const {
    return bf16 ? load(reinterpret_cast<const BFloat16*>(p)) : load(reinterpret_cast<const float*>(p));
  }

  // Scales `sums` [rows] of vector `v` of tile `tile`, and prefetches the scales that are read next.
  template <class W, int kRows>
  INLINE void scale(int64_t tile, int v, const Floats* sums) const {
    const int64_t size = bf16 ? 2 : 4;
    const char* p = scales[tile] + group * kTile * size;
    _mm_prefetch(p + to_next_panel, _MM_HINT_T1);
    if (to_zeros) _mm_prefetch(p + to_zeros + to_next_panel, _MM_HINT_T1);
    p += v * kLanes * size;
    const Floats scale = load_scale(p), zero = to_zeros ? load_scale(p + to_zeros) : Floats{};
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++) {
      float* to = y + m * y_stride + tile * kTile + v * kLanes;
      const float* x_sum = x_sums + m * groups + group;
      Floats sum = sums[m];
      if constexpr (W::kIntegers)
        sum = __builtin_convertvector(offset ? (Ints)sum - offset * static_cast<int>(*x_sum) : (Ints)sum, Floats);
      if (to_zeros) sum = mul_add(zero, broadcast(-*x_sum), sum);
      store(to, group ? mul_add(scale, sum, load(to)) : scale * sum);
    }
  }
};

// Multiplies kRows rows with kTiles tiles. With codes, each segment is a group. kKeep: whether `kept` gets the weights
// as tiles that are not quantised, the steps of a tile one after the other, `kept_tile` bytes from tile to tile.
template <class W, int kRows, int kTiles, bool kKeep = false>
__attribute__((noinline)) void product_block(const typename W::Operand* x, int64_t x_stride, Tiles t, Prefetch prefetch,
                                             bool add, float* y, int64_t y_stride, Scaling scaling,
                                             char* kept = nullptr, int64_t kept_tile = 0) {
  constexpr int kVectors = kTiles * kTile / kLanes, kPerTile = kTile / kLanes;
  int64_t until_fetch = prefetch.every;
  Floats sum[kRows][kVectors];
  // Like all loops over `sum`, this one is unrolled, because the compiler would otherwise keep `sum` in memory.
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) sum[m][v] = add ? load(y + m * y_stride + v * kLanes) : Floats{};
  for (int64_t s = 0; s < t.segments; s++) {
    const char* w[kTiles];
    for (int n = 0; n < kTiles; n++) w[n] = t.start[n];
    const int64_t begin = W::kCodes ? s * t.lines : 0;
    for (int64_t k = begin; k < begin + t.lines; k++) {
      if (--until_fetch == 0) {
        prefetch.fetch<kTiles>(w);
        until_fetch = prefetch.every;
      }
#pragma GCC unroll 8
      for (int step = 0; step < W::kSteps; step++, x += W::kInputs) {
        // Keeps the compiler from holding the weights of two steps in registers, which these blocks need for sums.
        if constexpr (kRows * kVectors > 8 && kLanes == 8) asm volatile("" ::: "memory");
        // A single row uses each vector of weights once, so it needs a register for one of them only.
        constexpr int kHeld = kRows == 1 ? 1 : kVectors;
#pragma GCC unroll 16
        for (int first = 0; first < kVectors; first += kHeld) {
          Words words[kHeld];
#pragma GCC unroll 16
          for (int h = 0, v = first; h < kHeld; h++, v++)
            words[h] = W::step(w[v / kPerTile] + k * kLineBytes, step, v % kPerTile);
          if constexpr (kKeep) {
#pragma GCC unroll 16
            for (int h = 0, v = first; h < kHeld; h++, v++)
              store_bits(kept + v / kPerTile * kept_tile + v % kPerTile * sizeof(Words), words[h]);
          }
#pragma GCC unroll 16
          for (int m = 0; m < kRows; m++)
#pragma GCC unroll 16
            for (int h = 0, v = first; h < kHeld; h++, v++)
              sum[m][v] = W::mul_add_step(x + m * x_stride, words[h], sum[m][v]);
        }
        if constexpr (kKeep) kept += kLineBytes;
      }
    }
    if (scaling.scales) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; v++) {
        Floats column[kRows];
#pragma GCC unroll 16
        for (int m = 0; m < kRows; m++) column[m] = sum[m][v], sum[m][v] = Floats{};
        scaling.scale<W, kRows>(v / kPerTile, v % kPerTile, column);
      }
      scaling.group++;
    }
    if constexpr (!W::kCodes) t.start += t.count;
  }
  if (scaling.scales) return;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) store(y + m * y_stride + v * kLanes, sum[m][v]);
}

// Returns how many tiles can have their accumulators in registers at the same time.
constexpr int tiles_per_block(int64_t rows) {
  if (kLanes == 16) return 4;
  if (kLanes == 8) return rows == 1 ? 4 : rows == 2 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}

// Calls product_block with `rows` as a template argument. Panels of codes are whole, so a block always has the tiles of
// its size, or those of a block with one row more beside it.
template <class W, int kTiles, int kRows = kMaxRows>
INLINE void product_rows(int64_t rows, const typename W::Operand* x, int64_t x_stride, Tiles t, Prefetch prefetch,
                         bool add, float* y, int64_t y_stride, const Scaling& scaling) {
  if constexpr (W::kCodes ? kTiles == tiles_per_block(kRows) || kTiles == tiles_per_block(kRows + 1)
                          : kTiles <= tiles_per_block(kRows)) {
    typedef std::conditional_t<kRows == 1, typename W::OneRow, W> Read;
    if (rows == kRows) return product_block<Read, kRows, kTiles>(x, x_stride, t, prefetch, add, y, y_stride, scaling);
  }
  if constexpr (kRows > 1)
    product_rows<W, kTiles, kRows - 1>(rows, x, x_stride, t, prefetch, add, y, y_stride, scaling);
}

// prefetch.skip: bytes from the end of the last tiles to those that are read after this product.
template <class W>
void product(int64_t rows, const typename W::Operand* x, int64_t x_stride, Tiles t, Prefetch prefetch, bool add,
             float* y, int64_t y_stride, const Scaling& scaling = {}) {
  const int64_t blocks = (rows + kMaxRows - 1) / kMaxRows, last_skip = prefetch.skip;
  const int64_t widest = tiles_per_block((rows + blocks - 1) / blocks);
  for (int64_t done = 0, width; done < t.count; done += width, t.start += width) {
    int64_t left = t.count - done;
    width = left >= 4 && widest == 4 ? 4 : left >= 2 && widest >= 2 ? 2 : 1;
    prefetch.skip = width < left ? t.start[width] - t.start[0] - prefetch.end : last_skip;
    for (int64_t b = 0, row = 0, size; b < blocks; b++, row += size) {
      size = rows / blocks + (b < rows % blocks);
      const auto* xs = x + row * x_stride;
      float* ys = y + row * y_stride + done * kTile;
      const Prefetch share = prefetch.share(b, blocks, t.lines);
      const Scaling part = scaling.at(row, done);
      if (width == 4)
        product_rows<W, 4>(size, xs, x_stride, t, share, add, ys, y_stride, part);
      else if (width == 2)
        product_rows<W, 2>(size, xs, x_stride, t, share, add, ys, y_stride, part);
      else
        product_rows<W, 1>(size, xs, x_stride, t, share, add, ys, y_stride, part);
    }
  }
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH

#if defined(__AMX_BF16__)
#include "amx.h"  // product<BFloat16Weights>
#endif
