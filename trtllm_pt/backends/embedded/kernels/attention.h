// The attention of some heads and tokens over the paged KV cache. Part of path.cpp.
//
// A row is a token and a head. Its keys are processed in blocks of 128 positions that begin at multiples of 128,
// independently of how tokens are divided into calls. The softmax is computed online, block by block in ascending
// order, relative to the highest score so far.
#pragma once
#include "product.h"
#include "rows.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

// ---- keys, values and queries of new tokens

// y[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps) in float32. Without a weight, y = x.
template <class X, class T>
INLINE void norm_head(const X* x, const T* weight, int64_t D, float eps, float* y) {
  Floats scale = broadcast(weight ? inverse_rms(x, D, eps) : 1.f);
  for (int64_t i = 0; i < D; i += kLanes) {
    Floats v = load(x + i);
    store(y + i, weight ? v * scale * load(weight + i) : v);
  }
}

// RoPE on halves: element i of the lower half and of the upper half rotate by angle i. Without a table, y = x.
INLINE void rotate_head(const float* x, const float* rotary, int64_t D, float* y) {
  const float *cos = rotary, *sin = rotary + D / 2, *low = x, *high = x + D / 2;
  for (int64_t i = 0; i < D / 2; i++) {
    y[i] = rotary ? low[i] * cos[i] - high[i] * sin[i] : low[i];
    y[D / 2 + i] = rotary ? high[i] * cos[i] + low[i] * sin[i] : high[i];
  }
}

// Applies RMS norm (if there is a weight) and RoPE (if there is a table) to one head of one token, in the given order.
template <class T>
__attribute__((noinline)) void norm_and_rotate(const T* x, const T* weight, const float* rotary, bool norm_after_rope,
                                               int64_t D, float eps, float* y) {
  float rotated[kMaxHeadSize];
  norm_head(x, norm_after_rope ? nullptr : weight, D, eps, y);
  rotate_head(y, rotary, D, rotated);
  norm_head(rotated, norm_after_rope ? weight : nullptr, D, eps, y);
}

template <class Y>
INLINE void store_head(const float* x, int64_t D, Y* y) {
  for (int64_t i = 0; i < D; i += kLanes) store(y + i, load(x + i));
}

// Returns a page of a sequence in the cache. values: 0 for keys, 1 for values. lane: track * G + KV head.
INLINE char* page_of(const Attention& a, int64_t values, int64_t sequence, int64_t page, int64_t lane) {
  int64_t number = a.pages[sequence * a.max_pages + page];
  int64_t row = (values * a.cache_pages + number) * a.tracks * a.kv_heads + lane;
  return a.cache + row * a.page_bytes;
}

// The scales of a page's tokens in an int8 cache.
INLINE float* scales_of(const Attention& a, char* page) { return (float*)(page + kPage * a.head_size); }

// Writes one token's key and value, [D] each, to slot `slot` of its pages, where the key is an output of the tile of
// keys, and the value an input of the tiles of values. T: the type of the cache's elements.
template <class W, class T>
INLINE void write_slot(const T* key, const T* value, int64_t slot, int64_t D, T* keys, T* values) {
  constexpr int64_t e = W::kLineInputs;
  for (int64_t d = 0; d < D; d += e) memcpy(keys + d * kPage + slot * e, key + d, e * sizeof(T));
  T* column = values + slot / e * kTile * e + slot % e;
  for (int64_t tile = 0; tile < D / kTile; tile++)
    for (int64_t i = 0; i < kTile; i++) column[tile * kPage * kTile + i * e] = value[tile * kTile + i];
}

// Returns the scale of x [D], and writes its codes: scale * code is x, rounded to nearest.
template <class T>
INLINE float quantize_head(const T* x, int64_t D, int8_t* codes) {
  Floats most = {};
  for (int64_t i = 0; i < D; i += kLanes) {
    const Floats v = load(x + i), size = select(v < 0.f, -v, v);
    most = select(size > most, size, most);
  }
  const float highest = max_of_lanes(most), inverse = highest > 0 ? 127.f / highest : 0.f;
  const Floats magic = broadcast(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
  for (int64_t i = 0; i < D; i += kLanes) {
    const Ints rounded = (Ints)(load(x + i) * inverse + magic) - (Ints)magic;
    for (int lane = 0; lane < kLanes; lane++) codes[i + lane] = static_cast<int8_t>(rounded[lane]);
  }
  return highest / 127.f;
}

template <class W>
INLINE void write_codes(const Attention& a, const float* key, const typename W::Value* value, int64_t slot, char* keys,
                        char* values) {
  int8_t key_codes[kMaxHeadSize], value_codes[kMaxHeadSize];
  scales_of(a, keys)[slot] = quantize_head(key, a.head_size, key_codes);
  scales_of(a, values)[slot] = quantize_head(value, a.head_size, value_codes);
  write_slot<W>(key_codes, value_codes, slot, a.head_size, (int8_t*)keys, (int8_t*)values);
}

template <class W>
void write_cache_of(const Attention& a, int64_t track, int64_t sequence, int64_t begin, int64_t end) {
  typedef typename W::Value T;
  const int64_t D = a.head_size, group = a.heads / a.kv_heads, width = (a.heads + 2 * a.kv_heads) * D;
  const T* q_norm = a.q_norm ? static_cast<const T*>(a.q_norm) + track * D : nullptr;
  const T* k_norm = a.k_norm ? static_cast<const T*>(a.k_norm) + track * D : nullptr;
  auto* queries = reinterpret_cast<typename W::Operand*>(a.queries);
  float rotated[kMaxHeadSize];
  for (int64_t m = begin; m < end; m++) {
    const int64_t token = a.offsets[sequence] + m, position = a.starts[sequence] + m, page = position / kPage;
    const T* row = static_cast<const T*>(a.qkv) + (track * a.tokens + token) * width;
    const float* rotary = a.rotary ? a.rotary + token * D : nullptr;
    for (int64_t g = 0; g < a.kv_heads; g++) {
      const int64_t lane = track * a.kv_heads + g;
      for (int64_t h = 0; h < group; h++) {
        norm_and_rotate(row + (g * group + h) * D, q_norm, rotary, a.norm_after_rope, D, a.eps, rotated);
        store_head(rotated, D, queries + ((lane * a.tokens + token) * group + h) * D);
      }
      char *keys = page_of(a, 0, sequence, page, lane), *values = page_of(a, 1, sequence, page, lane);
      const T *in = row + (a.heads + g) * D, *value = row + (a.heads + a.kv_heads + g) * D;
      const int64_t slot = position % kPage;
      if (slot == 0) {  // old content must not enter a product, where 0 * inf would give NaN
        memset(keys, 0, a.page_bytes);
        memset(values, 0, a.page_bytes);
      }
      norm_and_rotate(in, k_norm, rotary, a.norm_after_rope, D, a.eps, rotated);
      if (a.int8_cache) {
        write_codes<W>(a, rotated, value, slot, keys, values);
      } else {
        T key[kMaxHeadSize];
        store_head(rotated, D, key);
        write_slot<W>(key, value, slot, D, (T*)keys, (T*)values);
      }
    }
  }
}

// Where bfloat16 has its own instruction, the same code for float32 is in the path `avx512`.
void write_cache(const Attention& a, int64_t track, int64_t sequence, int64_t begin, int64_t end) {
  if (a.bf16) return write_cache_of<BFloat16Weights>(a, track, sequence, begin, end);
#if defined(__AVX512BF16__)
  avx512::table.write_cache(a, track, sequence, begin, end);
#else
  write_cache_of<FloatWeights>(a, track, sequence, begin, end);
#endif
}

// ---- attention

constexpr int64_t kKeys = kBlockPages * kPage;
constexpr int kSoftmaxRows = 2;  // rows whose softmax is computed together

// The scales of a block's keys and values in an int8 cache; 0 for keys of no page.
struct KeyScales {
  float keys[kKeys], values[kKeys];
};

// The state of a row's softmax over the keys so far: the highest score, and the sum of 2^(score - peak) per lane.
struct RunningSoftmax {
  Floats total;
  float peak;
};

// Updates the softmax of kRows rows for one more block of keys. With t = score * scale, in units of log2, and masked
// outside the keys first[row] to last[row] of the block:
//   peak' = max(peak, max t);  p = 2^(t - peak');  total' = total * 2^(peak - peak') + p
// The weighted sums of values so far, `sums` [kRows, D], are scaled like `total`. Each lane adds its p in ascending
// order of the keys. p is written to `probabilities` [kRows, kKeys]. kScaled: t is also multiplied by the keys' scales,
// and what is written by those of the values; `scales` has both.
template <int kRows, bool kMasked, bool kScaled, class Y>
INLINE void online_softmax(const float* scores, float scale, const KeyScales& scales, const int* first, const int* last,
                           RunningSoftmax* state, Y* probabilities, float* sums, int64_t D) {
  constexpr int kVectors = kKeys / kLanes;
  const Floats never = broadcast(-__builtin_inff());
  Floats t[kRows][kVectors], top[kRows];
  Ints lane;
  for (int i = 0; i < kLanes; i++) lane[i] = i;
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      t[row][v] = load(scores + row * kKeys + v * kLanes) * scale;
      if (kScaled) t[row][v] *= load(scales.keys + v * kLanes);
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
    if (highest > state[row].peak) {
      const Floats decay = exp2(broadcast(state[row].peak - highest));
      state[row].peak = highest;
      state[row].total *= decay;
      for (int64_t d = 0; d < D; d += kLanes) store(sums + row * D + d, load(sums + row * D + d) * decay);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; row++) {
    Floats sum = {};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      Floats p = exp2(t[row][v] - state[row].peak);
      sum += p;
      if (kScaled) p *= load(scales.values + v * kLanes);
      store(probabilities + row * kKeys + v * kLanes, p);
    }
    state[row].total += sum;
  }
}

// The rows of one call of `attend`, for some tokens of a sequence and the heads of one KV head, token after token.
struct QueryRows {
  const Attention& a;
  int64_t sequence, lane, begin, count;
  int64_t start, group, window;  // window: INT64_MAX without one

  INLINE int64_t position(int64_t row) const { return start + (begin + row) / group; }
  INLINE int64_t token(int64_t row) const { return a.offsets[sequence] + (begin + row) / group; }
  INLINE int64_t oldest_key(int64_t row) const { return max(0, position(row) - window + 1); }
};

// A block of keys, and the part of it to which the rows of a call attend.
struct KeyBlock {
  int64_t base;               // position of the block's first key
  int64_t first_page, pages;  // the sequence's pages in this block to which any row attends
  int64_t skipped;            // keys of the block before the first page
  int64_t low, high;          // the rows [low, high) that attend to any key of the block
  bool whole;                 // whether these rows attend to all keys of the block, so that none is masked
};

INLINE KeyBlock key_block(const QueryRows& q, int64_t number, int64_t oldest, int64_t newest) {
  KeyBlock block;
  block.base = number * kKeys;
  block.first_page = max(number * kBlockPages, oldest / kPage);
  block.pages = min((number + 1) * kBlockPages, newest / kPage + 1) - block.first_page;
  block.skipped = block.first_page * kPage - block.base;
  const int64_t last_key = block.base + kKeys - 1;
  block.low = 0, block.high = q.count;
  while (q.position(block.low) < block.base) block.low++;
  while (q.position(block.high - 1) - q.window >= last_key) block.high--;
  block.whole = q.position(block.low) >= last_key && q.position(block.high - 1) - q.window < block.base;
  return block;
}

// Returns the block's page `p` of keys or values as weights of a product. Codes are expanded to `expanded`.
template <class W>
INLINE const char* page_of_block(const QueryRows& q, const KeyBlock& block, int64_t values, int64_t p,
                                 typename W::Value* expanded) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  const char* page = page_of(q.a, values, q.sequence, block.first_page + p, q.lane);
  if (!q.a.int8_cache) return page;
  const int64_t n = kPage * q.a.head_size;
  typename W::Value* wide = expanded + p * n;
  for (int64_t i = 0; i < n; i += kLanes)
    store(wide + i, __builtin_convertvector(__builtin_convertvector(load_bits<Bytes>(page + i), Ints), Floats));
  return (const char*)wide;
}

INLINE void read_scales(const QueryRows& q, const KeyBlock& block, KeyScales* scales) {
  *scales = {};
  for (int64_t p = 0; p < block.pages; p++) {
    const int64_t at = block.skipped + p * kPage, page = block.first_page + p;
    memcpy(scales->keys + at, scales_of(q.a, page_of(q.a, 0, q.sequence, page, q.lane)), kPage * sizeof(float));
    memcpy(scales->values + at, scales_of(q.a, page_of(q.a, 1, q.sequence, page, q.lane)), kPage * sizeof(float));
  }
}

// scores[row, key] = query . key
template <class W>
INLINE void score(const QueryRows& q, const KeyBlock& block, const typename W::Operand* queries,
                  typename W::Value* expanded, float* scores) {
  const int64_t D = q.a.head_size;
  const char* keys[kBlockPages];
  for (int64_t p = 0; p < block.pages; p++) keys[p] = page_of_block<W>(q, block, 0, p, expanded);
  const Tiles tiles{keys, block.pages, 1, D / W::kLineInputs};
  product<W>(block.high - block.low, queries + block.low * D, D, tiles, Prefetch{}, false,
             scores + block.low * kKeys + block.skipped, kKeys);
}

template <int kRows, class X>
INLINE void softmax_rows(const QueryRows& q, const KeyBlock& block, int64_t row, float scale, const KeyScales& scales,
                         const float* scores, RunningSoftmax* state, X* probabilities, float* sums) {
  const int64_t D = q.a.head_size;
  int first[kRows], last[kRows];
  for (int i = 0; i < kRows && (!block.whole || q.a.int8_cache); i++) {
    first[i] = static_cast<int>(max(q.position(row + i) - q.window + 1 - block.base, 0));
    last[i] = static_cast<int>(min(q.position(row + i) - block.base, kKeys - 1));
  }
  auto softmax = q.a.int8_cache ? online_softmax<kRows, true, true, X>
                 : block.whole  ? online_softmax<kRows, false, false, X>
                                : online_softmax<kRows, true, false, X>;
  softmax(scores + row * kKeys, scale, scales, first, last, state + row, probabilities + row * kKeys, sums + row * D,
          D);
}

// Adds the sum over the block's keys of probability * value to sums[row], in ascending order of the keys.
template <class W>
INLINE void add_values(const QueryRows& q, const KeyBlock& block, const typename W::Operand* probabilities,
                       typename W::Value* expanded, float* sums) {
  const int64_t D = q.a.head_size;
  const char *pages[kBlockPages], *values[kBlockPages * kPanel];
  for (int64_t p = 0; p < block.pages; p++) pages[p] = page_of_block<W>(q, block, 1, p, expanded);
  for (int64_t tile = 0, width; tile < D / kTile; tile += width) {
    width = min(kPanel, D / kTile - tile);
    for (int64_t p = 0; p < block.pages; p++)
      for (int64_t n = 0; n < width; n++)
        values[p * width + n] = pages[p] + (tile + n) * kPage * kTile * sizeof(typename W::Value);
    const Tiles tiles{values, width, block.pages, kPage / W::kLineInputs};
    product<W>(block.high - block.low, probabilities + block.low * kKeys + block.skipped, kKeys, tiles, Prefetch{},
               true, sums + block.low * D + tile * kTile, D);
  }
}

// out = sums / total
template <class T>
INLINE void write_output(const QueryRows& q, const RunningSoftmax* state, const float* sums) {
  const int64_t D = q.a.head_size, track = q.lane / q.a.kv_heads, kv_head = q.lane % q.a.kv_heads;
  for (int64_t row = 0; row < q.count; row++) {
    const int64_t head = kv_head * q.group + (q.begin + row) % q.group;
    T* out = static_cast<T*>(q.a.out) + ((track * q.a.tokens + q.token(row)) * q.a.heads + head) * D;
    Floats inverse = broadcast(1.f / sum_of_lanes(state[row].total));
    // Adding 0 makes -0 to +0. The sign of a zero would otherwise depend on the number of masked keys.
    for (int64_t d = 0; d < D; d += kLanes) store(out + d, load(sums + row * D + d) * inverse + 0.f);
  }
}

template <class W>
void attend_of(const Attention& a, int64_t track, int64_t kv_head, int64_t sequence, int64_t begin, int64_t end) {
  typedef typename W::Operand X;
  const int64_t D = a.head_size, group = a.heads / a.kv_heads, lane = track * a.kv_heads + kv_head;
  const QueryRows q{a,           sequence,           lane,  begin,
                    end - begin, a.starts[sequence], group, a.window > 0 ? a.window : INT64_MAX};
  const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(D));
  const X* queries =
      reinterpret_cast<const X*>(a.queries) + ((lane * a.tokens + a.offsets[sequence]) * group + begin) * D;

  float scores[kQueryRows * kKeys], sums[kQueryRows * kMaxHeadSize];
  X probabilities[kQueryRows * kKeys];
  alignas(64) typename W::Value expanded[kKeys * kMaxHeadSize];  // of an int8 cache
  KeyScales scales;
  RunningSoftmax state[kQueryRows];
  memset(sums, 0, q.count * D * sizeof(float));
  for (int64_t row = 0; row < q.count; row++) state[row] = {Floats{}, -__builtin_inff()};

  const int64_t oldest = q.oldest_key(0), newest = q.position(q.count - 1);
  for (int64_t number = oldest / kKeys; number <= newest / kKeys; number++) {
    const KeyBlock block = key_block(q, number, oldest, newest);
    if (a.int8_cache) read_scales(q, block, &scales);
    score<W>(q, block, queries, expanded, scores);
    int64_t row = block.low;
    for (; row + kSoftmaxRows <= block.high; row += kSoftmaxRows)
      softmax_rows<kSoftmaxRows>(q, block, row, scale, scales, scores, state, probabilities, sums);
    for (; row < block.high; row++) softmax_rows<1>(q, block, row, scale, scales, scores, state, probabilities, sums);
    add_values<W>(q, block, probabilities, expanded, sums);
  }
  write_output<typename W::Value>(q, state, sums);
}

void attend(const Attention& a, int64_t track, int64_t kv_head, int64_t sequence, int64_t begin, int64_t end) {
  if (a.bf16) return attend_of<BFloat16Weights>(a, track, kv_head, sequence, begin, end);
#if defined(__AVX512BF16__)
  avx512::table.attend(a, track, kv_head, sequence, begin, end);
#else
  attend_of<FloatWeights>(a, track, kv_head, sequence, begin, end);
#endif
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
