// The ops of the embedded engine. The comment of each op has its formula and the order of its sums. bindings.cpp gives
// their schemas to torch; collective.cpp and heartbeat.cpp register their own ops.
//
// Shapes: T tokens in the step, K tracks on this rank, W hidden size, H heads and G KV heads of a track, D head size,
// F intermediate size, E experts, B sequences, P cache pages, M pages of the longest sequence, I inputs and N outputs
// of a product. Tensors are bfloat16 or float32, the same for all tensors of a call unless a comment says otherwise;
// sums are float32. "packed" weights are those that `pack` returns, or quantised weights (paths.h) as bytes [.., tiles,
// bytes of a tile]. For the latter, `form` is {bits, groups, whether there are zero points}; otherwise it is not given.
// A fourth number, 1, makes the product one of integers (paths.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace trtllm_pt {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// w [.., N, I] -> [.., ceil(N / 16), ceil(I / e), 16 e]: e inputs of each of 16 outputs, padded with zeros.
Tensor pack(const Tensor& w);

// y[k, t, n] = sum over i of x[k, t, i] w[k, n, i], + bias[k, n]. Adds i in ascending order.
// x [K, T, I], w [K, N, I] packed, bias [K, N] -> y [K, T, N]
Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t n, at::OptionalIntArrayRef form);

// y = silu(x gate^T) * (x up^T), where silu(z) = z / (1 + e^-z); both sums in ascending order of the inputs.
// x [K, T, I], w [K, 2, F, I] packed: the gate, then up -> y [K, T, F]
Tensor linear_swiglu(const Tensor& x, const Tensor& w, int64_t n, at::OptionalIntArrayRef form);

// y[t, j] = sum over i of x[t, i] table[first + j, i], i ascending, or -infinity for rows beyond the table's end.
// x [T, W], table [V, W] packed, first int64 [1] -> y float32 [T, n]
Tensor head(const Tensor& x, const Tensor& table, const Tensor& first, int64_t n, at::OptionalIntArrayRef form);

// y[t] = table[ids[t]]. ids int64 [T], table [V, W] packed -> y [T, W] in `dtype`, or else in the table's.
Tensor gather_rows(const Tensor& ids, const Tensor& table, int64_t width, at::OptionalIntArrayRef form,
                   std::optional<at::ScalarType> dtype);

// y[k, t, i] = x[k, t, i] weight[k, i] / sqrt(mean over i of x[k, t, i]^2 + eps). The squares are summed in four
// vectors, which are added in pairs, and then their lanes in halves (rows.h, sum_over). x [K, T, W], or [1, T, W] for
// the same x on all tracks; weight [K, W] -> y [K, T, W]
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);

// y[t] = cos(p f), sin(p f) with p the position of token t in its sequence; p f is a float32 product.
// tokens [T], starts int64 [B], offsets int64 [B + 1], inv_freq float32 [D/2] -> y float32 [T, D]
Tensor rotary(const Tensor& tokens, const Tensor& starts, const Tensor& offsets, const Tensor& inv_freq);

// Causal attention of the new tokens, after their keys and values are written to the cache:
//   q, k = RoPE(norm(q)), RoPE(norm(k)), or norm(RoPE(.)) with norm_after_rope
//   y[t] = sum over keys s of softmax(q[t] . k[s] / sqrt(D)) v[s], for the last `window` positions s <= t, or all if 0
// The softmax is online over blocks of 128 keys, ascending (attention.h), so y does not depend on chunks or pages.
// qkv [K, T, (H + 2G) D], rotary float32 [T, D], q_norm and k_norm [K, D], cache [2, P, K G, 16 D], starts int64 [B],
// offsets int64 [B + 1], pages int64 [B, M] -> y [K, T, H D]
// A cache of bytes, [2, P, K G, 16 (D + 4)], is in int8 with a scale per token and KV head (paths.h). Scores are then
// multiplied by the scales of the keys, and the softmax's weights by those of the values.
Tensor attention(const Tensor& qkv, const OptionalTensor& rotary, const OptionalTensor& q_norm,
                 const OptionalTensor& k_norm, Tensor cache, const Tensor& starts, const Tensor& offsets,
                 const Tensor& pages, int64_t heads, int64_t head_size, int64_t window, double eps,
                 bool norm_after_rope);

// A mixture of gated FFNs. With z = x router^T, or cap tanh(z / cap) if cap > 0, and S the top_k experts of z, ties to
// the lower index:  y = sum over e in S of softmax(z over S)[e] down_e (silu(gate_e x) * (up_e x)), best expert first.
// x [K, T, W], router float32 [K, E, W], gate_up [K, E, 2, F, W] packed: the gate, then up; down [K, E, W, F] packed
// -> y [K, T, W]
Tensor experts(const Tensor& x, const Tensor& router, const Tensor& gate_up, const Tensor& down, int64_t top_k,
               double cap, int64_t intermediate, at::OptionalIntArrayRef gate_up_form,
               at::OptionalIntArrayRef down_form);

// What a rank's slice of the vocabulary, tokens [first, first + n), contributes to the log-probs of R rows: for each
// block of kScoreBlock tokens, which begin at multiples of it, the largest logit and the sum of e^(logit - largest);
// the logits of tokens whose block belongs to several slices; the target's logit; and the k largest logits, the lower
// token first on ties. Tokens from `vocab` on are padding. The numbers of a block are the same on any number of ranks.
// logits float32 [R, n], targets int64 [R] -> y float32 [R, ..]
Tensor score_slice(const Tensor& logits, int64_t first, int64_t vocab, const Tensor& targets, int64_t k);

// Merges the results of score_slice of g ranks: the log-softmax of the targets, and of the k likeliest tokens, with
// these tokens. The sum over the vocabulary adds the blocks' sums in float64, in ascending order.
// parts float32 [g, R, ..], n as in score_slice -> float64 [R], float64 [R, k], int64 [R, k]
std::tuple<Tensor, Tensor, Tensor> merge_scores(const Tensor& parts, int64_t n, int64_t vocab, int64_t k);

// Returns the name of this process's instruction path.
std::string isa();

}  // namespace trtllm_pt
