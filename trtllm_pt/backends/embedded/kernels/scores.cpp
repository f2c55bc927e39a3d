// The ops that turn logits into log-probs: score_slice on every rank, merge_scores on rank 0 (ops.h).
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "parallel.h"
#include "paths.h"

namespace trtllm_pt {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct ExpSum {  // of one block: the largest logit, and the sum of e^(logit - most)
  float most, sum;
};

// A logit with its token. A larger logit comes first and, of equal ones, the lower token.
struct Candidate {
  float logit;
  int32_t token;
  bool before(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && token < other.token);
  }
};

// The tokens [first, first + count) of the vocabulary that one rank has, in blocks of kScoreBlock tokens. `head` tokens
// at the beginning and `tail` tokens at the end belong to blocks that are not whole here.
struct Slice {
  int64_t first, count, head, whole, tail;

  Slice(int64_t begin, int64_t size, int64_t vocab) : first(begin) {
    count = std::clamp<int64_t>(vocab - first, 0, size);
    head = std::min(count, (kScoreBlock - first % kScoreBlock) % kScoreBlock);
    whole = (count - head) / kScoreBlock;
    tail = count - head - whole * kScoreBlock;
  }
};

// The places of a row of scores, in floats. Every rank's rows have the same size.
struct Row {
  static constexpr int64_t kEdge = kScoreBlock - 1;
  int64_t most, sum, target, logits, tokens, size;

  Row(int64_t slice, int64_t k) {
    const int64_t blocks = slice / kScoreBlock;
    most = 2 * kEdge, sum = most + blocks, target = sum + blocks, logits = target + 1, tokens = logits + k;
    size = tokens + k;
  }
};

ExpSum exp_sum(const float* block) {
  ExpSum found;
  path().exp_sum(block, &found.most, &found.sum);
  return found;
}

// Adds the logits of tokens [first, first + n) to the best candidates so far, best first.
void insert_best(const float* logits, int64_t first, int64_t n, std::vector<Candidate>& best) {
  for (int64_t i = 0; i < n; i++) {
    Candidate one{logits[i], static_cast<int32_t>(first + i)};
    if (!one.before(best.back())) continue;
    auto place = best.end() - 1;
    for (; place != best.begin() && one.before(*(place - 1)); place--) *place = *(place - 1);
    *place = one;
  }
}

void score_row(const float* logits, const Slice& slice, int64_t k, int64_t target, const Row& row, float* out) {
  std::vector<Candidate> best(k, {kNever, std::numeric_limits<int32_t>::max()});
  const float* body = logits + slice.head;
  memcpy(out, logits, slice.head * sizeof(float));
  memcpy(out + Row::kEdge, body + slice.whole * kScoreBlock, slice.tail * sizeof(float));
  if (k) insert_best(logits, slice.first, slice.head, best);
  for (int64_t b = 0; b < slice.whole; b++) {
    const ExpSum found = exp_sum(body + b * kScoreBlock);
    out[row.most + b] = found.most, out[row.sum + b] = found.sum;
    const int64_t before = slice.head + b * kScoreBlock;
    if (k && found.most > best.back().logit) insert_best(logits + before, slice.first + before, kScoreBlock, best);
  }
  const int64_t before = slice.head + slice.whole * kScoreBlock;
  if (k) insert_best(logits + before, slice.first + before, slice.tail, best);
  const bool here = target >= slice.first && target < slice.first + slice.count;
  out[row.target] = here ? logits[target - slice.first] : kNever;
  for (int64_t i = 0; i < k; i++) {
    out[row.logits + i] = best[i].logit;
    memcpy(out + row.tokens + i, &best[i].token, sizeof(float));
  }
}

// Copies the logits of a block that no rank has whole, from the edges of the ranks' slices, and returns its sum.
ExpSum sum_of_edges(const float* rows, int64_t row_stride, const std::vector<Slice>& slices, int64_t begin,
                    int64_t end) {
  float block[kScoreBlock];
  std::fill_n(block, kScoreBlock, kNever);
  for (size_t rank = 0; rank < slices.size(); rank++) {
    const Slice& slice = slices[rank];
    const float* row = rows + rank * row_stride;
    for (int64_t token = std::max(begin, slice.first); token < std::min(end, slice.first + slice.count); token++) {
      const int64_t place = token - slice.first, tail = place - (slice.head + slice.whole * kScoreBlock);
      block[token - begin] = place < slice.head ? row[place] : row[Row::kEdge + tail];
    }
  }
  return exp_sum(block);
}

// Returns the logarithm of the sum of e^logit over the vocabulary: the blocks' sums are added in ascending order.
double log_sum(const float* rows, int64_t row_stride, const std::vector<Slice>& slices, const Row& row, int64_t vocab) {
  std::vector<ExpSum> blocks;
  size_t rank = 0;
  for (int64_t begin = 0; begin < vocab; begin += kScoreBlock) {
    const int64_t end = std::min(begin + kScoreBlock, vocab);
    while (slices[rank].first + slices[rank].count <= begin) rank++;
    const Slice& slice = slices[rank];
    const int64_t b = (begin - slice.first - slice.head) / kScoreBlock;
    const bool whole = begin >= slice.first + slice.head && b < slice.whole;
    const float* own = rows + static_cast<int64_t>(rank) * row_stride;
    blocks.push_back(whole ? ExpSum{own[row.most + b], own[row.sum + b]}
                           : sum_of_edges(rows, row_stride, slices, begin, end));
  }
  double most = kNever, sum = 0;
  for (const ExpSum& block : blocks) most = std::max<double>(most, block.most);
  for (const ExpSum& block : blocks) sum += block.sum == 0 ? 0 : block.sum * std::exp(block.most - most);
  return most + std::log(sum);
}

}  // namespace

Tensor score_slice(const Tensor& logits, int64_t first, int64_t vocab, const Tensor& targets, int64_t k) {
  check_dims(logits, "score_slice: logits", 2);
  const int64_t R = logits.size(0), n = logits.size(1);
  check(logits, "score_slice: logits", at::kFloat, {R, n});
  check(targets, "score_slice: targets", at::kLong, {R});
  TORCH_CHECK(first >= 0 && n > 0 && k >= 0, "score_slice: first and k must not be negative, and logits not be empty");
  const Slice slice(first, n, vocab);
  const Row row(n, k);
  Tensor out = at::empty({R, row.size}, logits.options());
  const float* from = logits.const_data_ptr<float>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  for_each_row(R, n, [&](int64_t r) { score_row(from + r * n, slice, k, target[r], row, to + r * row.size); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> merge_scores(const Tensor& parts, int64_t n, int64_t vocab, int64_t k) {
  check_dims(parts, "merge_scores: parts", 3);
  const int64_t g = parts.size(0), R = parts.size(1), stride = R * parts.size(2);
  const Row row(n, k);
  check(parts, "merge_scores: parts", at::kFloat, {g, R, row.size});
  TORCH_CHECK(g * n >= vocab && vocab > 0, "merge_scores: ", g, " slices of ", n, " tokens are not the vocabulary's ",
              vocab);
  std::vector<Slice> slices;
  for (int64_t rank = 0; rank < g; rank++) slices.emplace_back(rank * n, n, vocab);
  auto options = parts.options().dtype(at::kDouble);
  Tensor chosen = at::empty({R}, options), top = at::empty({R, k}, options),
         tokens = at::empty({R, k}, options.dtype(at::kLong));
  const float* from = parts.const_data_ptr<float>();
  double* chosen_to = chosen.mutable_data_ptr<double>();
  double* top_to = top.mutable_data_ptr<double>();
  int64_t* tokens_to = tokens.mutable_data_ptr<int64_t>();
  for_each_row(R, vocab / kScoreBlock + g * k, [&](int64_t r) {
    const float* rows = from + r * row.size;
    const double whole = log_sum(rows, stride, slices, row, vocab);
    float target = kNever;
    std::vector<Candidate> best(g * k);
    for (int64_t rank = 0; rank < g; rank++) {
      const float* own = rows + rank * stride;
      target = own[row.target] == kNever ? target : own[row.target];
      for (int64_t i = 0; i < k; i++) {
        best[rank * k + i].logit = own[row.logits + i];
        memcpy(&best[rank * k + i].token, own + row.tokens + i, sizeof(float));
      }
    }
    std::sort(best.begin(), best.end(), [](const Candidate& a, const Candidate& b) { return a.before(b); });
    chosen_to[r] = target - whole;
    for (int64_t i = 0; i < k; i++) top_to[r * k + i] = best[i].logit - whole, tokens_to[r * k + i] = best[i].token;
  });
  return {chosen, top, tokens};
}

}  // namespace trtllm_pt
