// The ops rotary and attention (ops.h). This file checks arguments and divides the work; attention.h computes.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "parallel.h"

namespace trtllm_pt {
namespace {

void check_sequences(const char* op, const Tensor& starts, const Tensor& offsets, int64_t T) {
  check_dims(starts, op, 1);
  const int64_t B = starts.size(0);
  check(starts, "starts", at::kLong, {B});
  check(offsets, "offsets", at::kLong, {B + 1});
  const int64_t *start = starts.const_data_ptr<int64_t>(), *offset = offsets.const_data_ptr<int64_t>();
  TORCH_CHECK(offset[0] == 0 && offset[B] == T, op, ": offsets must go from 0 to the ", T, " tokens, go from ",
              offset[0], " to ", offset[B]);
  for (int64_t b = 0; b < B; b++) {
    TORCH_CHECK(offset[b] <= offset[b + 1], op, ": offsets must not descend, sequence ", b, " has ", offset[b], " and ",
                offset[b + 1]);
    TORCH_CHECK(start[b] >= 0, op, ": start of sequence ", b, " must not be negative, is ", start[b]);
  }
}

// Checks the pages of sequence b that its `count` new tokens read or write.
void check_pages(const Attention& a, int64_t b, int64_t count) {
  const int64_t start = a.starts[b], last = (start + count - 1) / kPage;
  const int64_t oldest = a.window > 0 ? std::max<int64_t>(0, start - a.window + 1) : 0;
  TORCH_CHECK(last < a.max_pages, "attention: sequence ", b, " ends at position ", start + count - 1, ", beyond its ",
              a.max_pages, " pages of ", kPage);
  for (int64_t page = oldest / kPage; page <= last; page++) {
    const int64_t number = a.pages[b * a.max_pages + page];
    TORCH_CHECK(number >= 0 && number < a.cache_pages, "attention: page ", page, " of sequence ", b, " is number ",
                number, ", outside the cache's ", a.cache_pages);
  }
}

// The tokens, or the rows (token, head of a group), from `begin` up to but excluding `end` of a sequence.
struct Span {
  int64_t sequence, begin, end;
};

struct Plan {
  std::vector<Span> writes;  // each has tokens of one page
  std::vector<Span> reads;   // each has up to kQueryRows rows
};

// Divides the sequences' new tokens into spans. If there are few rows, spans are short, so that every thread has work.
Plan plan(const Attention& a, int64_t sequences) {
  const int64_t group = a.heads / a.kv_heads, lanes = a.tracks * a.kv_heads, threads = at::get_num_threads();
  const int64_t max_rows = std::clamp<int64_t>((lanes * a.tokens * group + threads - 1) / threads, 1, kQueryRows);
  Plan plan;
  for (int64_t b = 0; b < sequences; b++) {
    const int64_t start = a.starts[b], count = a.offsets[b + 1] - a.offsets[b];
    if (count == 0) continue;
    check_pages(a, b, count);
    for (int64_t m = 0, end; m < count; m = end) {
      end = std::min(count, ((start + m) / kPage + 1) * kPage - start);
      plan.writes.push_back({b, m, end});
    }
    for (int64_t row = 0; row < count * group; row += max_rows)
      plan.reads.push_back({b, row, std::min(count * group, row + max_rows)});
  }
  return plan;
}

void write_spans(const Attention& a, const std::vector<Span>& writes) {
  const int64_t spans = writes.size(), width = (a.heads + 2 * a.kv_heads) * a.head_size;
  const int64_t tokens_each = (a.tokens + spans - 1) / std::max<int64_t>(1, spans);
  for_each_row(spans * a.tracks, tokens_each * width, [&](int64_t unit) {
    const Span& s = writes[unit / a.tracks];
    path().write_cache(a, unit % a.tracks, s.sequence, s.begin, s.end);
  });
}

void attend_spans(const Attention& a, const std::vector<Span>& reads) {
  const int64_t spans = reads.size(), lanes = a.tracks * a.kv_heads;
  for_each_unit(spans * lanes, [&](int64_t unit) {
    const Span& s = reads[spans - 1 - unit / lanes];  // the last rows, which attend to most keys, first
    path().attend(a, unit % lanes / a.kv_heads, unit % a.kv_heads, s.sequence, s.begin, s.end);
  });
}

}  // namespace

Tensor rotary(const Tensor& tokens, const Tensor& starts, const Tensor& offsets, const Tensor& inv_freq) {
  check_dims(inv_freq, "rotary: inv_freq", 1);
  const int64_t T = tokens.size(0), B = starts.size(0), half = inv_freq.size(0);
  check_sequences("rotary", starts, offsets, T);
  check(inv_freq, "rotary: inv_freq", at::kFloat, {half});
  const int64_t *start = starts.const_data_ptr<int64_t>(), *offset = offsets.const_data_ptr<int64_t>();
  const float* freq = inv_freq.const_data_ptr<float>();
  Tensor y = at::empty({T, 2 * half}, inv_freq.options());
  float* out = y.mutable_data_ptr<float>();
  for_each_row(T, 64 * half, [&](int64_t t) {
    const int64_t b = std::upper_bound(offset, offset + B + 1, t) - offset - 1;
    const float position = static_cast<float>(start[b] + t - offset[b]);
    for (int64_t i = 0; i < half; i++) {
      const double angle = position * freq[i];  // float32 product
      out[t * 2 * half + i] = static_cast<float>(std::cos(angle));
      out[t * 2 * half + half + i] = static_cast<float>(std::sin(angle));
    }
  });
  return y;
}

Tensor attention(const Tensor& qkv, const OptionalTensor& rotary, const OptionalTensor& q_norm,
                 const OptionalTensor& k_norm, Tensor cache, const Tensor& starts, const Tensor& offsets,
                 const Tensor& pages, int64_t H, int64_t D, int64_t window, double eps, bool norm_after_rope) {
  check_dims(qkv, "attention: qkv", 3);
  check_dims(cache, "attention: cache", 4);
  check_dims(pages, "attention: pages", 2);
  const bool bf16 = is_bf16(qkv, "attention: qkv");
  const int64_t K = qkv.size(0), T = qkv.size(1), width = qkv.size(2), B = starts.size(0);
  TORCH_CHECK(D % kTile == 0 && D > 0 && D <= kMaxHeadSize, "attention: head_size must be a multiple of ", kTile,
              " up to ", kMaxHeadSize, ", is ", D);
  const int64_t G = (width / D - H) / 2;
  TORCH_CHECK(H > 0 && G > 0 && (H + 2 * G) * D == width && H % G == 0, "attention: qkv of width ", width, " is not ",
              H, " heads and twice a divisor of that in KV heads, each of size ", D);
  check_sequences("attention", starts, offsets, T);
  const bool int8_cache = cache.scalar_type() == at::kByte;
  const int64_t page = int8_cache ? kPage * (D + static_cast<int64_t>(sizeof(float))) : kPage * D;
  check(cache, "attention: cache", int8_cache ? at::kByte : qkv.scalar_type(), {2, cache.size(1), K * G, page});
  check(pages, "attention: pages", at::kLong, {B, pages.size(1)});
  if (rotary) check(*rotary, "attention: rotary", at::kFloat, {T, D});
  if (q_norm) check(*q_norm, "attention: q_norm", qkv.scalar_type(), {K, D});
  if (k_norm) check(*k_norm, "attention: k_norm", qkv.scalar_type(), {K, D});

  Tensor rows = qkv.contiguous(), out = at::empty({K, T, H * D}, qkv.options());
  const auto operand = bf16 && path().operand == Kind::kBFloat16 ? at::kBFloat16 : at::kFloat;
  Tensor queries = at::empty({K, T, H, D}, qkv.options().dtype(operand));
  Attention a{};
  a.bf16 = bf16, a.qkv = bytes(rows), a.cache = mutable_bytes(cache);
  a.int8_cache = int8_cache, a.page_bytes = page * cache.element_size();
  a.rotary = rotary ? rotary->const_data_ptr<float>() : nullptr;
  a.q_norm = q_norm ? bytes(*q_norm) : nullptr, a.k_norm = k_norm ? bytes(*k_norm) : nullptr;
  a.norm_after_rope = norm_after_rope;
  a.starts = starts.const_data_ptr<int64_t>(), a.offsets = offsets.const_data_ptr<int64_t>();
  a.pages = pages.const_data_ptr<int64_t>();
  a.tokens = T, a.tracks = K, a.heads = H, a.kv_heads = G, a.head_size = D, a.window = window;
  a.cache_pages = cache.size(1), a.max_pages = pages.size(1), a.eps = static_cast<float>(eps);
  a.queries = mutable_bytes(queries), a.out = mutable_bytes(out);

  const Plan spans = plan(a, B);
  write_spans(a, spans.writes);
  attend_spans(a, spans.reads);
  return out;
}

}  // namespace trtllm_pt
