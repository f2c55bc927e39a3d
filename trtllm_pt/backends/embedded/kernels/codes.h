// Quantised weights (paths.h): products that read their codes, and their expansion to weights that are not quantised.
// Part of path.cpp.
//
// Codes are whole numbers that float32 and bfloat16 can represent. A product with codes multiplies and adds in the same
// order as one with the numbers that they stand for, so it does not matter to the result which of the two computes it.
#pragma once
#include "product.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

// What codes are expanded to in a bfloat16 model. Without an instruction for bfloat16, float32 saves a conversion.
#if defined(__AVX512BF16__)
typedef BFloat16Weights WideBFloat16;
#else
typedef FloatWeights WideBFloat16;
#endif

// Returns pairs (low, high) as bfloat16. Both are whole numbers of at most 8 bits, so their last 16 bits are zero.
INLINE Words pair(Floats low, Floats high) { return (Words)high | (Words)low >> 16; }

INLINE Floats load_int8(const char* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  return (Floats)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(load_bits<int>(p))));
#endif
}

#if defined(__AVX512VBMI__)
// The bytes of the numbers from 0 to 127 in bfloat16, and where a step of 2 inputs has the bytes of 64 codes: output j
// has the low and the high byte of code j and then of code 16 + j, in the second step 32 codes later.
struct Int8Table {
  unsigned char low[128], high[128], order[2][64];
};

constexpr Int8Table make_int8_table() {
  Int8Table t{};
  for (unsigned n = 1, exponent = 0; n < 128; n++) {
    exponent += n >> (exponent + 1);  // of the largest power of two up to n
    const unsigned bits = (127 + exponent) << 7 | (n << (7 - exponent) & 127);
    t.low[n] = bits & 255, t.high[n] = bits >> 8;
  }
  for (unsigned i = 0; i < 128; i++) t.order[i / 64][i % 64] = i / 64 * 32 + i % 4 / 2 * 16 + i % 64 / 4 + i % 2 * 64;
  return t;
}

alignas(64) constexpr Int8Table kInt8Table = make_int8_table();

// Int8Codes in bfloat16 by looking up the bytes of their magnitudes, which takes half of the instructions but many
// registers, so that only a single row is faster.
struct Int8Lookup {
  typedef BFloat16 Operand;
  static constexpr int64_t kInputs = 2;
  static constexpr int kSteps = 2;
  static constexpr bool kCodes = true;

  static INLINE __m512i table(const unsigned char* p) { return _mm512_load_si512(p); }
  static INLINE Words step(const char* line, int step, int) {
    const __m512i codes = _mm512_loadu_si512(line), magnitude = _mm512_abs_epi8(codes);
    const __m512i low = _mm512_permutex2var_epi8(table(kInt8Table.low), magnitude, table(kInt8Table.low + 64));
    __m512i high = _mm512_permutex2var_epi8(table(kInt8Table.high), magnitude, table(kInt8Table.high + 64));
    // The lookup sees 7 bits, so it takes 128 for 0: this sets its high byte to 0x43, and lowers no other one.
    high = _mm512_max_epu8(high, _mm512_subs_epu8(magnitude, _mm512_set1_epi8(128 - 0x43)));
    const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(-128));
    return (Words)_mm512_permutex2var_epi8(low, table(kInt8Table.order[step]), _mm512_or_si512(high, sign));
  }
  static INLINE Floats mul_add_step(const Operand* x, Words w, Floats sum) {
    return BFloat16Weights::mul_add_step(x, w, sum);
  }
};
#endif

template <class W>
struct Int8Codes {
  typedef W Wide;
#if defined(__AVX512VBMI__)
  typedef std::conditional_t<W::kInputs == 2, Int8Lookup, Int8Codes> OneRow;
#else
  typedef Int8Codes OneRow;
#endif
  typedef typename W::Operand Operand;
  static constexpr int64_t kInputs = W::kInputs, kLineInputs = 4;
  static constexpr int kSteps = kLineInputs / kInputs;
  static constexpr bool kCodes = true;

  static INLINE Words step(const char* line, int step, int v) {
    const char* codes = line + step * kInputs * kTile + v * kLanes;
    if constexpr (kInputs == 1) return (Words)load_int8(codes);
    return pair(load_int8(codes), load_int8(codes + kTile));
  }
  static INLINE Floats mul_add_step(const Operand* x, Words w, Floats sum) { return W::mul_add_step(x, w, sum); }
};

// Returns the numbers from -8 to 7 in bits [shift, shift + 4) of words.
INLINE Floats int4_at(Words words, int shift) {
#if defined(__AVX512F__)
  const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
  return (Floats)_mm512_permutexvar_ps((__m512i)(words >> shift), numbers);  // looks at the last 4 bits
#else
  return __builtin_convertvector((Ints)(words << (28 - shift)) >> 28, Floats);
#endif
}

template <class W>
struct Int4Codes {
  typedef W Wide;
  typedef Int4Codes OneRow;
  typedef typename W::Operand Operand;
  static constexpr int64_t kInputs = W::kInputs, kLineInputs = 8;
  static constexpr int kSteps = kLineInputs / kInputs;
  static constexpr bool kCodes = true;

  static INLINE Words step(const char* line, int step, int v) {
    const Words words = load_bits<Words>(line + v * sizeof(Words));
    if constexpr (kInputs == 1) return (Words)int4_at(words, 16 * (step % 2) + 4 * (step / 2));
#if defined(__AVX512F__)
    // In bfloat16, 0 to 7 and then -8 to -1, twice: looks at the last 5 bits of 16, of which the first is another
    // code's.
    const __m512i numbers = _mm512_broadcast_i64x4(
        _mm256_setr_epi16(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, (short)0xc100, (short)0xc0e0,
                          (short)0xc0c0, (short)0xc0a0, (short)0xc080, (short)0xc040, (short)0xc000, (short)0xbf80));
    return (Words)_mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)words, 4 * step), numbers);
#else
    return pair(int4_at(words, 4 * step), int4_at(words, 16 + 4 * step));
#endif
  }
  static INLINE Floats mul_add_step(const Operand* x, Words w, Floats sum) { return W::mul_add_step(x, w, sum); }
};

// Expands `lines` lines of each of kPanel tiles of codes to tiles of C::Wide, one after the other in `wide`.
template <class C>
__attribute__((noinline)) void expand(const char* const* codes, int64_t lines, char* wide) {
  for (int64_t n = 0; n < kPanel; n++)
    for (int64_t k = 0; k < lines; k++)
#pragma GCC unroll 8
      for (int step = 0; step < C::kSteps; step++, wide += kLineBytes)
#pragma GCC unroll 4
        for (int v = 0; v < kTile / kLanes; v++) {
          const Words words = C::step(codes[n] + k * kLineBytes, step, v);
          memcpy(wide + v * sizeof words, &words, sizeof words);
        }
}

// Multiplies any number of rows with kPanel tiles of codes. The first kMaxRows rows convert the codes in the registers
// and write the weights to `wide`, which the others multiply with.
template <class C>
void product_of_codes(int64_t rows, const typename C::Operand* x, int64_t x_stride, Tiles t, Prefetch prefetch,
                      bool add, float* y, int64_t y_stride, const Scaling& scaling, char* wide) {
  typedef typename C::Wide W;
  const int64_t copy = t.lines * C::kSteps * kLineBytes;
  const char* copies[kPanel] = {wide, wide + copy, wide + 2 * copy, wide + 3 * copy};
  const Tiles wide_tiles{copies, kPanel, 1, t.lines * C::kSteps};
  if constexpr (W::kTiled) {
    expand<C>(t.start, t.lines, wide);
    product<W>(rows, x, x_stride, wide_tiles, prefetch, add, y, y_stride);
    for (int64_t row = 0; scaling.scales && row < rows; row++)
      for (int64_t j = 0; j < kPanel * kTile; j += kLanes) {
        const Floats sum = load(y + row * y_stride + j);
        scaling.at(row, 0).template scale<1>(j / kTile, j % kTile / kLanes, &sum);
      }
  } else {
    constexpr int kWidth = tiles_per_block(kMaxRows);
    for (int64_t n = 0; n < kPanel; n += kWidth)
      product_block<C, kMaxRows, kWidth, true>(x, x_stride, {t.start + n, kWidth, 1, t.lines}, prefetch, add,
                                               y + n * kTile, y_stride, scaling.at(0, n), wide + n * copy, copy);
    product<W>(rows - kMaxRows, x + kMaxRows * x_stride, x_stride, wide_tiles, {}, add, y + kMaxRows * y_stride,
               y_stride, scaling.at(kMaxRows, 0));
  }
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
