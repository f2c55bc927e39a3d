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

INLINE Ints load_int8(const char* p) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return (Ints)_mm_cvtepi8_epi32(_mm_cvtsi32_si128(load_bits<int>(p)));
#endif
}

INLINE Floats load_int8_as_floats(const char* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps((__m512i)load_int8(p));
#else
  return __builtin_convertvector(load_int8(p), Floats);
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
  static constexpr bool kCodes = true, kIntegers = false;

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
  static constexpr bool kCodes = true, kIntegers = false;

  static INLINE Words step(const char* line, int step, int v) {
    const char* codes = line + step * kInputs * kTile + v * kLanes;
    if constexpr (kInputs == 1) return (Words)load_int8_as_floats(codes);
    return pair(load_int8_as_floats(codes), load_int8_as_floats(codes + kTile));
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
  static constexpr bool kCodes = true, kIntegers = false;

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

// Codes as integers (IntegerWeights). kOffset: what is added to them, so that they are not negative.
struct IntegersOfInt8 {
  typedef IntegerWeights Wide;
  typedef IntegersOfInt8 OneRow;
  typedef IntegerWeights::Operand Operand;
  static constexpr int64_t kInputs = IntegerWeights::kInputs, kLineInputs = 4;
  static constexpr int kSteps = kLineInputs / kInputs, kOffset = kInputs == 4 ? 128 : 0;
  static constexpr bool kCodes = true, kIntegers = true;

  static INLINE Words step(const char* line, [[maybe_unused]] int step, [[maybe_unused]] int v) {
#if defined(__AVX512VNNI__)
    // From [4 inputs, 16 outputs] to [16 outputs, 4 inputs].
    const __m512i rows = _mm512_setr_epi32(0x30201000, 0x31211101, 0x32221202, 0x33231303, 0x34241404, 0x35251505,
                                           0x36261606, 0x37271707, 0x38281808, 0x39291909, 0x3a2a1a0a, 0x3b2b1b0b,
                                           0x3c2c1c0c, 0x3d2d1d0d, 0x3e2e1e0e, 0x3f2f1f0f);
    return (Words)_mm512_permutexvar_epi8(rows, _mm512_loadu_si512(line)) ^ 0x80808080u;
#else
    const char* codes = line + step * kInputs * kTile + v * kLanes;
    return ((Words)load_int8(codes) & 0xffffu) | (Words)load_int8(codes + kTile) << 16;
#endif
  }
  static INLINE Floats mul_add_step(const Operand* x, Words w, Floats sum) { return Wide::mul_add_step(x, w, sum); }
};

// With VNNI, the inputs of a line are in the order 0 4 1 5, 2 6 3 7, and so are the codes of x.
struct IntegersOfInt4 {
  typedef IntegerWeights Wide;
  typedef IntegersOfInt4 OneRow;
  typedef IntegerWeights::Operand Operand;
  static constexpr int64_t kInputs = IntegerWeights::kInputs, kLineInputs = 8;
  static constexpr int kSteps = kLineInputs / kInputs, kOffset = kInputs == 4 ? 8 : 0;
  static constexpr bool kCodes = true, kIntegers = true;

  static INLINE Words step(const char* line, int step, int v) {
    const Words words = load_bits<Words>(line + v * sizeof(Words));
#if defined(__AVX512VNNI__)
    return ((words >> (4 * step)) & 0x0f0f0f0fu) ^ 0x08080808u;
#else
    typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));
    return (Words)((Shorts)words << (12 - 4 * step) >> 12);
#endif
  }
  static INLINE Floats mul_add_step(const Operand* x, Words w, Floats sum) { return Wide::mul_add_step(x, w, sum); }
};

// Writes the codes of x [n] and their sum over each group, and returns the scale. A row with a number that is not
// finite has no scale, so its results are NaN.
template <class T>
float quantize_row(const T* x, const Form& form, int64_t n, IntegerWeights::Operand* codes, float* sums) {
  typedef IntegerWeights::Operand Codes __attribute__((vector_size(sizeof(IntegerWeights::Operand) * kLanes)));
  Floats most = {}, nan = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats v = load(x + i), size = select(v < 0.f, -v, v);
    most = select(size > most, size, most);
    nan += v * 0.f;
  }
  const float highest = max_of_lanes(most), inverse = highest > 0 ? 127.f / highest : 0.f;
  const Floats magic = broadcast(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
  const int64_t group = n / form.groups;
  for (int64_t first = 0; first < n; first += group) {
    Ints sum = {};
    for (int64_t i = first; i < first + group; i += kLanes) {
      const Ints rounded = (Ints)(load(x + i) * inverse + magic) - (Ints)magic;
      sum += rounded;
      store_bits((char*)(codes + i), __builtin_convertvector(rounded, Codes));
    }
    sums[first / group] = sum_of_lanes(__builtin_convertvector(sum, Floats));
  }
#if defined(__AVX512VNNI__)
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  for (int64_t i = 0; form.bits == 4 && i < n; i += 32) {
    const __m256i eights = _mm256_loadu_si256((const __m256i*)(codes + i));
    _mm256_storeu_si256((__m256i*)(codes + i), _mm256_shuffle_epi8(eights, _mm512_castsi512_si256(order)));
  }
#endif
  return highest / 127.f + sum_of_lanes(nan);
}

float quantize(bool bf16, const void* x, const Form& form, int64_t n, void* codes, float* sums) {
  auto* to = static_cast<IntegerWeights::Operand*>(codes);
  return bf16 ? quantize_row(static_cast<const BFloat16*>(x), form, n, to, sums)
              : quantize_row(static_cast<const float*>(x), form, n, to, sums);
}

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
        scaling.at(row, 0).template scale<W, 1>(j / kTile, j % kTile / kLanes, &sum);
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
