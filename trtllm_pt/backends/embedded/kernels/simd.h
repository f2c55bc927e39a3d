// Vectors of the native width: loads and stores with conversion, fused multiply-add, 2^x. Part of path.cpp.
#pragma once
#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "paths.h"

#define INLINE inline __attribute__((always_inline))

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
struct BFloat16 {
  uint16_t bits;
};
struct Rounded {  // a float32 that bfloat16 can represent
  float value;
};

// These replace std::min and std::max, which the linker would merge (see paths.h).
INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

template <class V, class P>
INLINE V load_bits(const P* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
INLINE void store_bits(char* p, V v) {
  memcpy(p, &v, sizeof v);
}

// Not as `Floats{} + x`: that is an addition, because it makes -0 to 0, and keeps x from being broadcast from memory.
INLINE Floats broadcast(float x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Floats)_mm256_set1_ps(x);
#else
  return (Floats)_mm_set1_ps(x);
#endif
}
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
  return load_bits<Halves>(&h);
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
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);  // GCC would convert h in two parts
#else
  return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

INLINE Floats load(const float* p) { return load_bits<Floats>(p); }
INLINE Floats load(const BFloat16* p) { return from_bfloat16(load_bits<Halves>(p)); }
INLINE void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }
INLINE void store(BFloat16* p, Floats v) {
  Halves h = to_bfloat16(v);
  memcpy(p, &h, sizeof h);
}
INLINE void store(Rounded* p, Floats v) {
  Floats rounded = from_bfloat16(to_bfloat16(v));
  memcpy(p, &rounded, sizeof rounded);
}

// Load and store the first `count` lanes. The other lanes are read as zero and not written.
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

// Adds the lower half and the upper half, until one lane is left.
INLINE float sum_of_lanes(Floats v) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) v[i] += v[i + half];
  return v[0];
}

INLINE float max_of_lanes(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float highest = v[0];
  for (int i = 1; i < kLanes; i++) highest = v[i] > highest ? v[i] : highest;
  return highest;
#endif
}

// Returns 2^x for x up to 127, 0 for x below -126 (including -inf), and NaN for NaN. With n the integer nearest to x
// and r = x - n, |r| <= 1/2, the result is 2^n times the minimax polynomial 1 + r q(r), whose relative error is 1.6e-7
// including float32's rounding.
INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
  x = (Floats)_mm512_max_ps(_mm512_set1_ps(-200.f),
                            (__m512)x);  // gives -inf a fraction; returns the second if it is NaN
  Floats n = (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = x - n;
#else
  const Floats low = broadcast(-126.f), magic = broadcast(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
  Floats c = select(x < low, low, x), shifted = c + magic, n = shifted - magic, r = c - n;
#endif
  Floats p = broadcast(1.32647273e-3f);
  for (float term : {9.67151299e-3f, 5.55073358e-2f, 2.40222424e-1f, 6.93147004e-1f, 1.f})
    p = mul_add(p, r, broadcast(term));
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  Floats power = (Floats)(((Ints)shifted - (Ints)magic + 127) << 23);
  return (Floats)((Ints)(p * power) & ~(x < low));
#endif
}

constexpr float kLog2E = 1.44269504f;

// x / (1 + e^-x)
INLINE Floats silu(Floats x) { return x / (exp2(x * -kLog2E) + 1.f); }

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
