// Sums over rows of numbers: RMS norm, dot product, weighted sum, the tree sum of the all-reduce, and the sum of
// exponentials of a log-softmax. Part of path.cpp.
#pragma once
#include "simd.h"

namespace trtllm_pt::TRTLLM_PT_PATH {
namespace {

// Sums f over the vectors of [0, n): f(i, sum) adds the vector that begins at i to a sum. Vector j is added to
// accumulator j % 4; the accumulators are added in pairs, then their lanes in halves.
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

// y[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps)
template <class T>
void norm_of(const T* x, const T* weight, float eps, int64_t n, T* y) {
  Floats scale = broadcast(inverse_rms(x, n, eps));
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, load(x + i, n - i) * scale * load(weight + i, n - i), n - i);
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

// y[i] = the sum of x over [i n, (i + 1) n)
template <class T>
void group_sums_of(const T* x, int64_t groups, int64_t n, float* y) {
  for (int64_t i = 0; i < groups; i++, x += n)
    y[i] = sum_over(n, [&](int64_t j, Floats sum) { return sum + load(x + j, n - j); });
}

void group_sums(bool bf16, const void* x, int64_t groups, int64_t n, float* y) {
#if defined(__AVX512BF16__)
  if (bf16) return group_sums_of((const BFloat16*)x, groups, n, y);
#else
  static_cast<void>(bf16);  // the operand is in float32
#endif
  group_sums_of((const float*)x, groups, n, y);
}

// y[i] = the sum of weights[j] * rows[j][i], j ascending
template <class T>
void combine_of(const float* const* rows, const float* weights, int64_t count, int64_t n, T* y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats sum = {};
    for (int64_t j = 0; j < count; j++) sum = mul_add(load(rows[j] + i, n - i), broadcast(weights[j]), sum);
    store(y + i, sum, n - i);
  }
}

void combine(const float* const* rows, const float* weights, int64_t count, int64_t n, bool bf16, void* y) {
  bf16 ? combine_of(rows, weights, count, n, (BFloat16*)y) : combine_of(rows, weights, count, n, (float*)y);
}

// The binary tree over `parts` rows, a power of two: the sum of the lower half plus the sum of the upper half.
template <int parts, class X>
INLINE Floats tree(const X* const* x, int64_t i) {
  if constexpr (parts == 1)
    return load(x[0] + i);
  else
    return tree<parts / 2>(x, i) + tree<parts / 2>(x + parts / 2, i);
}

// Computes tree_sum for the whole vectors of [begin, end), with the number of rows as a template argument, so that
// pointers and sums fit into registers. Returns the first element that is left.
template <int parts, class X, class Y>
int64_t tree_sum_whole(const void* const* x, int64_t begin, int64_t end, float scale, Y* y) {
  const X* row[parts];
  for (int p = 0; p < parts; p++) row[p] = static_cast<const X*>(x[p]);
  for (; begin + kLanes <= end; begin += kLanes) store(y + begin, tree<parts>(row, begin) * scale);
  return begin;
}

// y[i] = scale * the sum of x[part][i]: neighbours are added in pairs, then the pairs, until one is left.
template <class X, class Y>
void tree_sum_of(const void* const* x, int64_t parts, int64_t begin, int64_t end, float scale, Y* y) {
  if (parts == 1) begin = tree_sum_whole<1, X>(x, begin, end, scale, y);
  if (parts == 2) begin = tree_sum_whole<2, X>(x, begin, end, scale, y);
  if (parts == 4) begin = tree_sum_whole<4, X>(x, begin, end, scale, y);
  if (parts == 8) begin = tree_sum_whole<8, X>(x, begin, end, scale, y);
  Floats part[kMaxSummands];
  for (int64_t i = begin; i < end; i += kLanes) {
    for (int64_t p = 0; p < parts; p++) part[p] = load(static_cast<const X*>(x[p]) + i, end - i);
    for (int64_t distance = 1; distance < parts; distance *= 2)
      for (int64_t p = 0; p + distance < parts; p += 2 * distance) part[p] += part[p + distance];
    store(y + i, part[0] * scale, end - i);
  }
}

void tree_sum(bool x_bf16, const void* const* x, int64_t parts, int64_t begin, int64_t end, float scale, bool y_bf16,
              void* y) {
  if (x_bf16)
    y_bf16 ? tree_sum_of<BFloat16>(x, parts, begin, end, scale, (BFloat16*)y)
           : tree_sum_of<BFloat16>(x, parts, begin, end, scale, (float*)y);
  else
    y_bf16 ? tree_sum_of<float>(x, parts, begin, end, scale, (BFloat16*)y)
           : tree_sum_of<float>(x, parts, begin, end, scale, (float*)y);
}

void exp_sum(const float* x, float* most, float* sum) {
  constexpr float kInfinity = __builtin_inff();
  Floats highest = broadcast(-kInfinity), difference = {};  // the latter is NaN where some x is NaN
  for (int64_t i = 0; i < kScoreBlock; i += kLanes) {
    Floats v = load(x + i);
    highest = select(v > highest, v, highest);
    difference += select(v == v, Floats{}, v);
  }
  *most = max_of_lanes(highest);
  if (*most == -kInfinity) {
    *sum = sum_of_lanes(difference);
    return;
  }
  *sum = sum_over(kScoreBlock, [&](int64_t i, Floats total) { return total + exp2((load(x + i) - *most) * kLog2E); });
}

}  // namespace
}  // namespace trtllm_pt::TRTLLM_PT_PATH
