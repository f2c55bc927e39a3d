// Registers the ops of ops.h and their schemas with torch.
#include <torch/library.h>

#include <string>

#include "ops.h"
#include "paths.h"

namespace trtllm_pt {
namespace {

// The sizes that Python shares. library.py compares them with constants.py.
c10::Dict<std::string, int64_t> constants() {
  c10::Dict<std::string, int64_t> values;
  values.insert("TILE", kTile);
  values.insert("STEP_BYTES", kStepBytes);
  values.insert("PAGE", kPage);
  values.insert("MAX_HEAD_SIZE", kMaxHeadSize);
  values.insert("MAX_SUMMANDS", kMaxSummands);
  return values;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trtllm_pt, m) {
  m.def("pack(Tensor w) -> Tensor");
  m.def("linear(Tensor x, Tensor w, Tensor? bias, int n, int[]? form=None) -> Tensor");
  m.def("linear_swiglu(Tensor x, Tensor w, int n, int[]? form=None) -> Tensor");
  m.def("head(Tensor x, Tensor table, Tensor first, int n, int[]? form=None) -> Tensor");
  m.def("gather_rows(Tensor ids, Tensor table, int width, int[]? form=None, ScalarType? dtype=None) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("rotary(Tensor tokens, Tensor starts, Tensor offsets, Tensor inv_freq) -> Tensor");
  m.def(
      "attention(Tensor qkv, Tensor? rotary, Tensor? q_norm, Tensor? k_norm, Tensor(a!) cache, Tensor starts, "
      "Tensor offsets, Tensor pages, int heads, int head_size, int window, float eps, bool norm_after_rope) -> Tensor");
  m.def(
      "experts(Tensor x, Tensor router, Tensor gate_up, Tensor down, int top_k, float cap, int intermediate, "
      "int[]? gate_up_form=None, int[]? down_form=None) -> Tensor");
  m.def("score_slice(Tensor logits, int first, int vocab, Tensor targets, int k) -> Tensor");
  m.def("merge_scores(Tensor parts, int n, int vocab, int k) -> (Tensor, Tensor, Tensor)");
  m.def("isa() -> str", isa);
  m.def("constants() -> Dict(str, int)", constants);
}

TORCH_LIBRARY_IMPL(trtllm_pt, CPU, m) {
  m.impl("pack", pack);
  m.impl("linear", linear);
  m.impl("linear_swiglu", linear_swiglu);
  m.impl("head", head);
  m.impl("gather_rows", gather_rows);
  m.impl("rms_norm", rms_norm);
  m.impl("rotary", rotary);
  m.impl("attention", attention);
  m.impl("experts", experts);
  m.impl("score_slice", score_slice);
  m.impl("merge_scores", merge_scores);
}

}  // namespace trtllm_pt
