// The op `experts` (ops.h): routes the tokens, and computes one product for each expert that is chosen.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "checks.h"
#include "multiply.h"
#include "ops.h"
#include "parallel.h"

namespace trtllm_pt {
namespace {

struct Choice {
  int64_t expert;
  float weight;
};

// Chooses the top_k experts of one token, the best first, with the softmax over their logits.
void choose(const float* logits, int64_t E, int64_t top_k, Choice* chosen) {
  std::vector<int64_t> order(E);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  float sum = 0;
  for (int64_t r = 0; r < top_k; r++) {
    chosen[r] = {order[r], std::exp(logits[order[r]] - logits[order[0]])};
    sum += chosen[r].weight;
  }
  for (int64_t r = 0; r < top_k; r++) chosen[r].weight /= sum;
}

// Returns the choices of all tokens. Choice number r of a token has index (track * T + token) * top_k + r.
std::vector<Choice> route(const Tensor& x, const Tensor& router, int64_t top_k, float cap) {
  const int64_t K = x.size(0), T = x.size(1), W = x.size(2), E = router.size(1);
  const bool bf16 = x.scalar_type() == at::kBFloat16;
  std::vector<Choice> choices(K * T * top_k);
  for_each_row(K * T, E * W, [&](int64_t i) {
    std::vector<float> logits(E);
    for (int64_t e = 0; e < E; e++) {
      const float* w = router.const_data_ptr<float>() + (i / T * E + e) * W;
      logits[e] = path().dot(bf16, bytes(x) + i * W * x.element_size(), w, W);
      if (cap > 0) logits[e] = cap * std::tanh(logits[e] / cap);
    }
    choose(logits.data(), E, top_k, &choices[i * top_k]);
  });
  return choices;
}

// The choices sorted by expert, so that an expert's weights are read once for all of its tokens.
struct Groups {
  std::vector<int64_t> begin;  // [experts of all tracks + 1]: the first slot of each expert
  std::vector<int64_t> slot;   // [choices]: the slot of each choice
};

Groups group_by_expert(const std::vector<Choice>& choices, int64_t tracks, int64_t per_track, int64_t E) {
  auto expert_of = [&](size_t c) { return static_cast<int64_t>(c) / per_track * E + choices[c].expert; };
  Groups groups{std::vector<int64_t>(tracks * E + 1, 0), std::vector<int64_t>(choices.size())};
  for (size_t c = 0; c < choices.size(); c++) groups.begin[expert_of(c) + 1]++;
  std::partial_sum(groups.begin.begin(), groups.begin.end(), groups.begin.begin());
  std::vector<int64_t> next(groups.begin);
  for (size_t c = 0; c < choices.size(); c++) groups.slot[c] = next[expert_of(c)]++;
  return groups;
}

// Returns the rows of x [.., I], one for each choice, in the order of the slots.
Tensor gather_slots(const Tensor& x, const Groups& groups, int64_t top_k) {
  const int64_t slots = groups.slot.size(), row = x.size(-1) * x.element_size();
  Tensor y = at::empty({slots, x.size(-1)}, x.options());
  for_each_row(slots, x.size(-1),
               [&](int64_t c) { memcpy(mutable_bytes(y) + groups.slot[c] * row, bytes(x) + c / top_k * row, row); });
  return y;
}

// y [slots, .] = x [slots, I] times the weights [K, E, ..] of each slot's expert.
void multiply_groups(const Tensor& x, const Tensor& w, const Tensor& y, const Groups& groups, const Linear& shape) {
  const Tensor sums = group_sums(x, shape.bf16, shape.form);
  std::vector<Product> products;
  for (size_t e = 0; e + 1 < groups.begin.size(); e++) {
    const int64_t begin = groups.begin[e], rows = groups.begin[e + 1] - begin;
    if (rows > 0)
      products.push_back({bytes(x) + begin * x.size(-1) * x.element_size(),
                          shape.form.zeros ? sums.const_data_ptr<float>() + begin * shape.form.groups : nullptr,
                          nullptr, rows, bytes(w) + static_cast<int64_t>(e) * w.stride(1) * w.element_size(), nullptr,
                          mutable_bytes(y) + begin * y.size(1) * y.element_size()});
  }
  multiply(products, shape, x.element_size(), y.element_size());
}

// y[token] = the sum over its choices of weight * outputs[slot], the best choice first.
void combine(const Tensor& outputs, const std::vector<Choice>& choices, const Groups& groups, int64_t top_k,
             const Tensor& y) {
  const int64_t W = y.size(2);
  const bool bf16 = y.scalar_type() == at::kBFloat16;
  for_each_row(y.size(0) * y.size(1), top_k * W, [&](int64_t i) {
    std::vector<const float*> rows(top_k);
    std::vector<float> weights(top_k);
    for (int64_t r = 0; r < top_k; r++) {
      rows[r] = outputs.const_data_ptr<float>() + groups.slot[i * top_k + r] * W;
      weights[r] = choices[i * top_k + r].weight;
    }
    path().combine(rows.data(), weights.data(), top_k, W, bf16, mutable_bytes(y) + i * W * y.element_size());
  });
}

}  // namespace

Tensor experts(const Tensor& x, const Tensor& router, const Tensor& gate_up, const Tensor& down, int64_t top_k,
               double cap, int64_t F, at::OptionalIntArrayRef gate_up_form, at::OptionalIntArrayRef down_form) {
  check_dims(x, "experts: x", 3);
  check_dims(router, "experts: router", 3);
  const bool bf16 = is_bf16(x, "experts: x");
  const int64_t K = x.size(0), T = x.size(1), W = x.size(2), E = router.size(1);
  check(router, "experts: router", at::kFloat, {K, E, W});
  TORCH_CHECK(top_k >= 1 && top_k <= E, "experts: top_k must be from 1 to the ", E, " experts, is ", top_k);
  const Form up = check_packed(gate_up, "experts: gate_up", x, {K, E, 2}, F, W, gate_up_form);
  const Form out = check_packed(down, "experts: down", x, {K, E}, W, F, down_form);
  check_pairs(up, "experts: intermediate", F);
  for (const Form& form : {up, out}) check_not_integer(form, "experts");

  const Tensor xs = x.contiguous();
  const std::vector<Choice> choices = route(xs, router, top_k, static_cast<float>(cap));
  const Groups groups = group_by_expert(choices, K, T * top_k, E);
  const Tensor inputs = gather_slots(as_operand(xs), groups, top_k);

  const int64_t slots = choices.size(), inner = steps_of(bf16, F) * inputs_per_step(bf16);
  Tensor hidden = inner == F ? at::empty({slots, F}, inputs.options()) : at::zeros({slots, inner}, inputs.options());
  Linear swiglu = common_shape(bf16, up, inputs, inner, bf16 ? path().operand : Kind::kFloat, 0, F);
  swiglu.gate_to_up = gate_up.stride(2) * gate_up.element_size();
  multiply_groups(inputs, gate_up, hidden, groups, swiglu);

  Tensor outputs = at::empty({slots, W}, x.options().dtype(at::kFloat)), y = at::empty({K, T, W}, x.options());
  multiply_groups(hidden, down, outputs, groups, common_shape(bf16, out, hidden, W, Kind::kFloat, 0, W));
  combine(outputs, choices, groups, top_k, y);
  return y;
}

}  // namespace trtllm_pt
