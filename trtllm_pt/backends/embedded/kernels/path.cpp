// The kernels, written once on vectors of the native width; build.py compiles this file once per instruction set.
//
// The contract: a row's result depends on that row alone. Every sum has one order: a product adds its inputs ascending
// into one accumulator per output, whatever the number of rows; other sums run over full vectors, the last one padded.
// fp-contract is off and fused multiply-adds are written out, so the compiler cannot choose them differently per loop.
#include "paths.h"

#include <cstring>
#include <immintrin.h>
#include <initializer_list>

#define PATH_NAME_(x) #x
#define PATH_NAME(x) PATH_NAME_(x)

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

// kMaxRows: rows of a product's left side whose sums fit into the registers beside as many tiles as tiles_abreast().
#if defined(__AVX512F__)
constexpr int kLanes = 16, kMaxRows = 6;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kMaxRows = 4;
#else
constexpr int kLanes = 4, kMaxRows = 2;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
struct BFloat16 {
  uint16_t bits;
};
struct Rounded {
  float value;
};

#define INLINE inline __attribute__((always_inline))

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- vectors

template <class V, class P>
INLINE V read(const P* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE Floats all(float x) { return Floats{} + x; }
INLINE Floats select(Ints mask, Floats a, Floats b) { return (Floats)((mask & (Ints)a) | (~mask & (Ints)b)); }

INLINE Floats mul_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

INLINE Halves to_bfloat16(Floats v) {
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  return read<Halves>(&h);
#else
  Words u = (Words)v;
  Words rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  Words quiet = (u >> 16) | 0x40;
  Words nan = (Words)(v != v);
  return __builtin_convertvector((nan & quiet) | (~nan & rounded), Halves);
#endif
}

INLINE Floats from_bfloat16(Halves h) {
#if defined(__AVX512F__)
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);  // GCC converts the halves in two parts
#else
  return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

INLINE Floats load(const float* p) { return read<Floats>(p); }
INLINE Floats load(const BFloat16* p) { return from_bfloat16(read<Halves>(p)); }
INLINE void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }
INLINE void store(BFloat16* p, Floats v) {
  Halves h = to_bfloat16(v);
  memcpy(p, &h, sizeof h);
}
INLINE void store(Rounded* p, Floats v) {
  Floats rounded = from_bfloat16(to_bfloat16(v));
  memcpy(p, &rounded, sizeof rounded);
}

// The first `count` lanes; the rest reads as zero and is not written.
template <class T>
INLINE Floats load(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  T padded[kLanes] = {};
  if (count > 0) memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <class T>
INLINE void store(T* p, Floats v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  T full[kLanes];
  store(full, v);
  if (count > 0) memcpy(p, full, count * sizeof(T));
}

INLINE float sum_of_lanes(Floats v) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) v[i] += v[i + half];
  return v[0];
}

INLINE float max_of_lanes(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float most = v[0];
  for (int i = 1; i < kLanes; i++) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

// 2^x for x up to 127: 0 below -126 (-inf included), NaN stays NaN. The fraction, at most 1/2 away from an integer, goes
// through the polynomial 1 + r q(r) of least relative error, 1.6e-7 with float32's rounding.
INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
  x = (Floats)_mm512_max_ps(_mm512_set1_ps(-200.f), (__m512)x);  // so that -inf has a fraction; NaN is the second
  Floats n = (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = x - n;
#else
  const Floats low = all(-126.f), magic = all(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
  Floats c = select(x < low, low, x), shifted = c + magic, n = shifted - magic, r = c - n;
#endif
  Floats p = all(1.32647273e-3f);
  for (float term : {9.67151299e-3f, 5.55073358e-2f, 2.40222424e-1f, 6.93147004e-1f, 1.f}) p = mul_add(p, r, all(term));
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  Floats power = (Floats)(((Ints)shifted - (Ints)magic + 127) << 23);
  return (Floats)((Ints)(p * power) & ~(x < low));
#endif
}

constexpr float kLog2E = 1.44269504f;

// ---- the product: y[rows, tiles * 16] = (or +=) x times tiles

struct FloatWeights {
  typedef float Value;    // as stored
  typedef float Operand;  // the left side
  static constexpr int64_t kPack = 1;
  static INLINE Floats mul_add_step(const float* x, Words w, Floats sum) { return mul_add(all(*x), (Floats)w, sum); }
};

struct BFloat16Weights {
  typedef BFloat16 Value;
  static constexpr int64_t kPack = 2;
#if defined(__AVX512BF16__)
  typedef BFloat16 Operand;
  static INLINE Floats mul_add_step(const BFloat16* x, Words w, Floats sum) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(read<int>(x)), (__m512bh)w);
  }
#else
  typedef Rounded Operand;
  static INLINE Floats mul_add_step(const Rounded* x, Words w, Floats sum) {
    sum = mul_add(all(x[0].value), (Floats)(w << 16), sum);
    return mul_add(all(x[1].value), (Floats)(w & 0xffff0000u), sum);
  }
#endif
};

// tiles: pointers [segments][tile_count], of which this product takes some; a segment continues the sum with the next
// `steps` of x. Unless `ahead` is 0, the lines that many bytes further on in the tiles are prefetched meanwhile, those of a
// step at every `pause`-th: blocks of rows that read the same tiles one after the other each fetch a share, so that memory
// never rests. A tile ends at `end`: what would lie behind it is the tile beside it, which is read now, so `skip` bytes
// are left out, to the tile that is read next.
struct Tiles {
  const char* const* start;
  int64_t count, segments, steps, ahead = 0, pause = 0, end = 0, skip = 0;
};

template <class W, int kRows, int kTiles>
__attribute__((noinline)) void product_block(const typename W::Operand* x, int64_t x_stride, Tiles t, bool add, float* y,
                                             int64_t y_stride) {
  constexpr int kVectors = kTiles * kTile / kLanes, kPerTile = kTile / kLanes;
  int64_t wait = t.pause;
  Floats sum[kRows][kVectors];
  // Unrolled like all loops over `sum`, or the compiler keeps it in memory.
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) sum[m][v] = add ? load(y + m * y_stride + v * kLanes) : Floats{};
  for (int64_t s = 0; s < t.segments; s++, t.start += t.count) {
    const char* w[kTiles];
    for (int n = 0; n < kTiles; n++) w[n] = t.start[n];
    for (int64_t k = 0; k < t.steps; k++, x += W::kPack) {
      if (--wait == 0) {
#pragma GCC unroll 4
        for (int n = 0; n < kTiles; n++) _mm_prefetch(w[n] + t.ahead, _MM_HINT_T1);
        wait = t.pause, t.ahead += 64;
        if (t.ahead == t.end) t.ahead += t.skip;
      }
      Words line[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; v++)
        line[v] = read<Words>(w[v / kPerTile] + k * 64 + v % kPerTile * sizeof(Words));
#pragma GCC unroll 16
      for (int m = 0; m < kRows; m++)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; v++) sum[m][v] = W::mul_add_step(x + m * x_stride, line[v], sum[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; m++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) store(y + m * y_stride + v * kLanes, sum[m][v]);
}

// As many tiles side by side as accumulators fit into the registers.
constexpr int tiles_abreast(int64_t rows) {
  if (kLanes == 16) return 4;
  if (kLanes == 8) return rows == 1 ? 4 : rows == 2 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}

template <class W, int kTiles, int kRows = kMaxRows>
INLINE void product_rows(int64_t rows, const typename W::Operand* x, int64_t x_stride, Tiles t, bool add, float* y,
                         int64_t y_stride) {
  if constexpr (kTiles <= tiles_abreast(kRows)) {
    if (rows == kRows) return product_block<W, kRows, kTiles>(x, x_stride, t, add, y, y_stride);
  }
  if constexpr (kRows > 1) product_rows<W, kTiles, kRows - 1>(rows, x, x_stride, t, add, y, y_stride);
}

template <class W>
void product(int64_t rows, const typename W::Operand* x, int64_t x_stride, Tiles t, bool add, float* y, int64_t y_stride) {
  const int64_t blocks = (rows + kMaxRows - 1) / kMaxRows, ahead = t.ahead, last_skip = t.skip;
  t.pause = ahead ? blocks : 0;
  const int64_t abreast = tiles_abreast((rows + blocks - 1) / blocks);
  for (int64_t done = 0, width; done < t.count; done += width, t.start += width) {
    int64_t left = t.count - done;
    width = left >= 4 && abreast == 4 ? 4 : left >= 2 && abreast >= 2 ? 2 : 1;
    t.skip = width < left ? t.start[width] - t.start[0] - t.end : last_skip;
    for (int64_t b = 0, row = 0, size; b < blocks; b++, row += size) {
      size = rows / blocks + (b < rows % blocks);
      const auto* xs = x + row * x_stride;
      float* ys = y + row * y_stride + done * kTile;
      t.ahead = ahead + b * t.steps / blocks * 64;
      if (t.ahead >= t.end) t.ahead += t.skip;
      if (width == 4)
        product_rows<W, 4>(size, xs, x_stride, t, add, ys, y_stride);
      else if (width == 2)
        product_rows<W, 2>(size, xs, x_stride, t, add, ys, y_stride);
      else
        product_rows<W, 1>(size, xs, x_stride, t, add, ys, y_stride);
    }
  }
}

#if defined(__AMX_BF16__)
#include "amx.h"  // product<BFloat16Weights>
#endif

// ---- linear

INLINE Floats silu(Floats x) { return x / (exp2(x * -kLog2E) + 1.f); }

template <class W, class Y>
void finish_linear(const Linear& a, const float* sums) {
  constexpr int64_t kWidth = kPanel * kTile;
  const auto* bias = static_cast<const typename W::Value*>(a.bias);
  const float* ups = a.up ? sums + a.tiles / 2 * kTile : nullptr;
  for (int64_t row = 0; row < a.rows; row++) {
    Y* y = static_cast<Y*>(a.y) + row * a.y_stride;
    for (int64_t j = a.begin, n; j < a.end; j += n) {
      n = least(kLanes, a.end - j);
      Floats v = load(sums + row * kWidth + j, n);
      if (bias) v += load(bias + j, n);
      if (ups) v = silu(v) * load(ups + row * kWidth + j, n);
      store(y + j, v, n);
    }
  }
}

template <class W>
void linear_of(const Linear& a) {
  constexpr int64_t kWidth = kPanel * kTile, kAhead = 1024, kChunk = 256;
  float sums[kLinearRows * kWidth];
  // More rows than one block holds read the weights again: in chunks that stay in the caches, where the next
  // chunk arrives meanwhile.
  const bool once = a.rows <= kMaxRows;
  const int64_t chunk = once ? a.steps : kChunk, tile = a.steps * 64, abreast = a.up ? a.tiles / 2 : a.tiles;
  for (int64_t step = 0; step < a.steps; step += chunk) {
    const char* tiles[kPanel];
    for (int64_t n = 0; n < a.tiles; n++) tiles[n] = a.w + n % abreast * tile + n / abreast * a.up + step * 64;
    Tiles t{tiles, a.tiles, 1, least(chunk, a.steps - step), once ? kAhead : chunk * 64};
    t.end = tile - step * 64, t.skip = a.next ? a.next - tile : 0;
    const auto* x = static_cast<const typename W::Operand*>(a.x) + step * W::kPack;
    product<W>(a.rows, x, a.x_stride, t, step > 0, sums, kWidth);
  }
  if (a.y_kind == Kind::kFloat)
    finish_linear<W, float>(a, sums);
  else if (a.y_kind == Kind::kRounded)
    finish_linear<W, Rounded>(a, sums);
  else
    finish_linear<W, BFloat16>(a, sums);
}

void linear(const Linear& a) { a.bf16 ? linear_of<BFloat16Weights>(a) : linear_of<FloatWeights>(a); }

// ---- rows

// The sum of f(i) over vectors that begin at i, in four accumulators.
template <class F>
INLINE float sum_over(int64_t n, F f) {
  Floats sum[4] = {};
  for (int64_t i = 0; i < n; i += 4 * kLanes)
    for (int j = 0; j < 4; j++) sum[j] = f(i + j * kLanes, sum[j]);
  return sum_of_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
INLINE float inverse_rms(const T* x, int64_t n, float eps) {
  float squares = sum_over(n, [&](int64_t i, Floats sum) {
    Floats v = load(x + i, n - i);
    return mul_add(v, v, sum);
  });
  return 1.f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
}

template <class T>
void norm_of(const T* x, const T* weight, float eps, int64_t n, T* y) {
  Floats scale = all(inverse_rms(x, n, eps));
  for (int64_t i = 0; i < n; i += kLanes)
    store(y + i, load(x + i, n - i) * scale * load(weight + i, n - i), n - i);
}

void norm(bool bf16, const void* x, const void* weight, float eps, int64_t n, void* y) {
  if (bf16)
    norm_of((const BFloat16*)x, (const BFloat16*)weight, eps, n, (BFloat16*)y);
  else
    norm_of((const float*)x, (const float*)weight, eps, n, (float*)y);
}

template <class T>
float dot_of(const T* x, const float* w, int64_t n) {
  return sum_over(n, [&](int64_t i, Floats sum) { return mul_add(load(x + i, n - i), load(w + i, n - i), sum); });
}

float dot(bool bf16, const void* x, const float* w, int64_t n) {
  return bf16 ? dot_of((const BFloat16*)x, w, n) : dot_of((const float*)x, w, n);
}

template <class T>
void combine_of(const float* const* rows, const float* weights, int64_t count, int64_t n, T* y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats sum = {};
    for (int64_t j = 0; j < count; j++) sum = mul_add(load(rows[j] + i, n - i), all(weights[j]), sum);
    store(y + i, sum, n - i);
  }
}

void combine(const float* const* rows, const float* weights, int64_t count, int64_t n, bool bf16, void* y) {
  bf16 ? combine_of(rows, weights, count, n, (BFloat16*)y) : combine_of(rows, weights, count, n, (float*)y);
}

// The tree over `parts` rows, a power of two: both halves, then their sum.
template <int parts, class X>
INLINE Floats tree(const X* const* x, int64_t i) {
  if constexpr (parts == 1) return load(x[0] + i);
  else return tree<parts / 2>(x, i) + tree<parts / 2>(x + parts / 2, i);
}

// Whole vectors of a known number of rows, whose pointers and sums fit the registers. Returns where it stopped.
template <int parts, class X, class Y>
int64_t tree_sum_whole(const void* const* x, int64_t begin, int64_t end, float scale, Y* y) {
  const X* row[parts];
  for (int p = 0; p < parts; p++) row[p] = static_cast<const X*>(x[p]);
  for (; begin + kLanes <= end; begin += kLanes) store(y + begin, tree<parts>(row, begin) * scale);
  return begin;
}

template <class X, class Y>
void tree_sum_of(const void* const* x, int64_t parts, int64_t begin, int64_t end, float scale, Y* y) {
  if (parts == 1) begin = tree_sum_whole<1, X>(x, begin, end, scale, y);
  if (parts == 2) begin = tree_sum_whole<2, X>(x, begin, end, scale, y);
  if (parts == 4) begin = tree_sum_whole<4, X>(x, begin, end, scale, y);
  if (parts == 8) begin = tree_sum_whole<8, X>(x, begin, end, scale, y);
  Floats part[kMaxParts];
  for (int64_t i = begin; i < end; i += kLanes) {
    for (int64_t p = 0; p < parts; p++) part[p] = load(static_cast<const X*>(x[p]) + i, end - i);
    for (int64_t far = 1; far < parts; far *= 2)
      for (int64_t p = 0; p + far < parts; p += 2 * far) part[p] += part[p + far];
    store(y + i, part[0] * scale, end - i);
  }
}

void tree_sum(bool x_bf16, const void* const* x, int64_t parts, int64_t begin, int64_t end, float scale, bool y_bf16, void* y) {
  if (x_bf16)
    y_bf16 ? tree_sum_of<BFloat16>(x, parts, begin, end, scale, (BFloat16*)y)
           : tree_sum_of<BFloat16>(x, parts, begin, end, scale, (float*)y);
  else
    y_bf16 ? tree_sum_of<float>(x, parts, begin, end, scale, (BFloat16*)y)
           : tree_sum_of<float>(x, parts, begin, end, scale, (float*)y);
}

// ---- attention

// x[i] * weight[i] / sqrt(mean(x^2) + eps) in float32; without a weight x itself.
template <class X, class T>
INLINE void norm_head(const X* x, const T* weight, int64_t D, float eps, float* y) {
  Floats scale = all(weight ? inverse_rms(x, D, eps) : 1.f);
  for (int64_t i = 0; i < D; i += kLanes) {
    Floats v = load(x + i);
    store(y + i, weight ? v * scale * load(weight + i) : v);
  }
}

// RoPE on halves; without a table x itself.
INLINE void rotate_head(const float* x, const float* rotary, int64_t D, float* y) {
  const float *cos = rotary, *sin = rotary + D / 2, *low = x, *high = x + D / 2;
  for (int64_t i = 0; i < D / 2; i++) {
    y[i] = rotary ? low[i] * cos[i] - high[i] * sin[i] : low[i];
    y[D / 2 + i] = rotary ? high[i] * cos[i] + low[i] * sin[i] : high[i];
  }
}

// One head of one token: RMS norm where `weight` is given and RoPE where `rotary` is, in the order asked for.
template <class T, class Y>
INLINE void place(const T* x, const T* weight, const float* rotary, bool norm_last, int64_t D, float eps, Y* y) {
  float first[kMaxHeadSize], second[kMaxHeadSize];
  norm_head(x, norm_last ? nullptr : weight, D, eps, first);
  rotate_head(first, rotary, D, second);
  norm_head(second, norm_last ? weight : nullptr, D, eps, first);
  for (int64_t i = 0; i < D; i += kLanes) store(y + i, load(first + i));
}

template <class T>
INLINE T* page_of(const Attention& a, int64_t value, int64_t sequence, int64_t page, int64_t lane) {
  int64_t number = a.pages[sequence * a.max_pages + page];
  int64_t row = (value * a.cache_pages + number) * a.tracks * a.kv_heads + lane;
  return reinterpret_cast<T*>(a.cache) + row * kPage * a.head_size;
}

template <class W>
void write_of(const Attention& a, int64_t track, int64_t sequence, int64_t begin, int64_t end) {
  typedef typename W::Value T;
  constexpr int64_t e = W::kPack;
  const int64_t D = a.head_size, group = a.heads / a.kv_heads, width = (a.heads + 2 * a.kv_heads) * D;
  const T* q_norm = a.q_norm ? static_cast<const T*>(a.q_norm) + track * D : nullptr;
  const T* k_norm = a.k_norm ? static_cast<const T*>(a.k_norm) + track * D : nullptr;
  auto* queries = reinterpret_cast<typename W::Operand*>(a.queries);
  for (int64_t m = begin; m < end; m++) {
    const int64_t token = a.offsets[sequence] + m, position = a.starts[sequence] + m, slot = position % kPage;
    const T* row = static_cast<const T*>(a.qkv) + (track * a.tokens + token) * width;
    const float* rotary = a.rotary ? a.rotary + token * D : nullptr;
    for (int64_t g = 0; g < a.kv_heads; g++) {
      const int64_t lane = track * a.kv_heads + g;
      for (int64_t h = 0; h < group; h++)
        place(row + (g * group + h) * D, q_norm, rotary, a.norm_last, D, a.eps, queries + ((lane * a.tokens + token) * group + h) * D);
      T key[kMaxHeadSize];
      place(row + (a.heads + g) * D, k_norm, rotary, a.norm_last, D, a.eps, key);
      const T* value = row + (a.heads + a.kv_heads + g) * D;
      T* keys = page_of<T>(a, 0, sequence, position / kPage, lane);
      T* values = page_of<T>(a, 1, sequence, position / kPage, lane);
      if (slot == 0) {  // what a page's last owner left must not reach a product: 0 * inf
        memset(keys, 0, kPage * D * sizeof(T));
        memset(values, 0, kPage * D * sizeof(T));
      }
      for (int64_t d = 0; d < D; d += e) memcpy(keys + d * kPage + slot * e, key + d, 4);
      T* column = values + slot / e * kTile * e + slot % e;
      for (int64_t tile = 0; tile < D / kTile; tile++)
        for (int64_t i = 0; i < kTile; i++) column[tile * kPage * kTile + i * e] = value[tile * kTile + i];
    }
  }
}

void write(const Attention& a, int64_t track, int64_t sequence, int64_t begin, int64_t end) {
  a.bf16 ? write_of<BFloat16Weights>(a, track, sequence, begin, end)
         : write_of<FloatWeights>(a, track, sequence, begin, end);
}

constexpr int64_t kKeys = kBlock * kPage;
constexpr int kAbreast = 2;  // rows whose softmax is taken side by side

// What a row has seen of its keys: the highest score, the sum of the probabilities relative to it, in lanes.
struct Seen {
  Floats total;
  float peak;
};

// Scores of kRows rows against a block of keys, in units of log2, into probabilities relative to the highest score so far.
// Keys first[row] to last[row] of the block count. What was summed under a lower peak is scaled down: `total` and `sums`.
template <int kRows, bool kMasked, class Y>
INLINE void soften(const float* scores, float scale, const int* first, const int* last, Seen* seen, Y* out, float* sums,
                   int64_t D) {
  constexpr int kVectors = kKeys / kLanes;
  const Floats never = all(-__builtin_inff());
  Floats t[kRows][kVectors], top[kRows];
  Ints lane;
  for (int i = 0; i < kLanes; i++) lane[i] = i;
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      t[row][v] = load(scores + row * kKeys + v * kLanes) * scale;
      if (kMasked) {
        Ints key = lane + v * kLanes;
        t[row][v] = select((key >= first[row]) & (key <= last[row]), t[row][v], never);
      }
      top[row] = v == 0 ? t[row][v] : select(t[row][v] > top[row], t[row][v], top[row]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
    const float highest = max_of_lanes(top[row]);
    if (highest > seen[row].peak) {
      const Floats decay = exp2(all(seen[row].peak - highest));
      seen[row].peak = highest;
      seen[row].total *= decay;
      for (int64_t d = 0; d < D; d += kLanes) store(sums + row * D + d, load(sums + row * D + d) * decay);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
    Floats sum = {};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      Floats p = exp2(t[row][v] - seen[row].peak);
      sum += p;
      store(out + row * kKeys + v * kLanes, p);
    }
    seen[row].total += sum;
  }
}

template <class W>
void attend_of(const Attention& a, int64_t track, int64_t kv_head, int64_t sequence, int64_t begin, int64_t end) {
  typedef typename W::Value T;
  typedef typename W::Operand X;
  const int64_t D = a.head_size, group = a.heads / a.kv_heads, lane = track * a.kv_heads + kv_head, rows = end - begin;
  const int64_t start = a.starts[sequence], window = a.window > 0 ? a.window : INT64_MAX;
  const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(D));
  const X* queries = reinterpret_cast<const X*>(a.queries) + ((lane * a.tokens + a.offsets[sequence]) * group + begin) * D;
  auto position = [&](int64_t row) { return start + (begin + row) / group; };

  float scores[kQueryRows * kKeys], sums[kQueryRows * kMaxHeadSize];
  X probabilities[kQueryRows * kKeys];
  Seen seen[kQueryRows];
  memset(sums, 0, rows * D * sizeof(float));
  for (int64_t row = 0; row < rows; row++) seen[row] = {Floats{}, -__builtin_inff()};

  const int64_t oldest = most(0, position(0) - window + 1), newest = position(rows - 1);
  for (int64_t block = oldest / kKeys; block <= newest / kKeys; block++) {
    const int64_t base = block * kKeys;  // position of the block's first key
    const int64_t first_page = most(block * kBlock, oldest / kPage);
    const int64_t count = least((block + 1) * kBlock, newest / kPage + 1) - first_page;
    const int64_t skipped = first_page * kPage - base;
    int64_t low = 0, high = rows;  // the rows that see any key of the block
    while (position(low) < base) low++;
    while (position(high - 1) - window >= base + kKeys - 1) high--;

    const char *keys[kBlock], *values[kBlock * kPanel];
    for (int64_t p = 0; p < count; p++) keys[p] = (const char*)page_of<T>(a, 0, sequence, first_page + p, lane);
    product<W>(high - low, queries + low * D, D, {keys, count, 1, D / W::kPack}, false, scores + low * kKeys + skipped,
               kKeys);
    const bool whole = position(low) >= base + kKeys - 1 && position(high - 1) - window < base;
    auto soften_rows = [&]<int kRows>(int64_t row) {
      int first[kRows], last[kRows];
      for (int i = 0; i < kRows && !whole; i++) {
        first[i] = static_cast<int>(most(position(row + i) - window + 1 - base, 0));
        last[i] = static_cast<int>(least(position(row + i) - base, kKeys - 1));
      }
      auto of = whole ? soften<kRows, false, X> : soften<kRows, true, X>;
      of(scores + row * kKeys, scale, first, last, seen + row, probabilities + row * kKeys, sums + row * D, D);
    };
    int64_t row = low;
    for (; row + kAbreast <= high; row += kAbreast) soften_rows.template operator()<kAbreast>(row);
    for (; row < high; row++) soften_rows.template operator()<1>(row);
    for (int64_t tile = 0, width; tile < D / kTile; tile += width) {
      width = least(kPanel, D / kTile - tile);
      for (int64_t p = 0; p < count; p++)
        for (int64_t n = 0; n < width; n++)
          values[p * width + n] =
              (const char*)(page_of<T>(a, 1, sequence, first_page + p, lane) + (tile + n) * kPage * kTile);
      product<W>(high - low, probabilities + low * kKeys + skipped, kKeys, {values, width, count, kPage / W::kPack}, true,
                 sums + low * D + tile * kTile, D);
    }
  }

  for (int64_t row = 0; row < rows; row++) {
    const int64_t token = a.offsets[sequence] + (begin + row) / group, head = kv_head * group + (begin + row) % group;
    T* out = static_cast<T*>(a.out) + ((track * a.tokens + token) * a.heads + head) * D;
    Floats inverse = all(1.f / sum_of_lanes(seen[row].total));
    // + 0: the sign of a zero would tell how many masked keys were added
    for (int64_t d = 0; d < D; d += kLanes) store(out + d, load(sums + row * D + d) * inverse + 0.f);
  }
}

void attend(const Attention& a, int64_t track, int64_t kv_head, int64_t sequence, int64_t begin, int64_t end) {
  a.bf16 ? attend_of<BFloat16Weights>(a, track, kv_head, sequence, begin, end)
         : attend_of<FloatWeights>(a, track, kv_head, sequence, begin, end);
}

}  // namespace

extern const Path table;
const Path table = {
    PATH_NAME(TRTLLM_PT_PATH),
#if defined(__AVX512BF16__)
    Kind::kBFloat16,
#else
    Kind::kRounded,
#endif
    linear, norm, dot, combine, tree_sum, write, attend,
};

}  // namespace trtllm_pt::TRTLLM_PT_PATH
