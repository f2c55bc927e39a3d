#include <ATen/ops/empty.h>

#include "checks.h"
#include "ops.h"
#include "parallel.h"

namespace trtllm_pt {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_dims(x, "rms_norm: x", 3);
  check_dims(weight, "rms_norm: weight", 2);
  const bool bf16 = is_bf16(x, "rms_norm: x");
  const int64_t K = weight.size(0), T = x.size(1), W = x.size(2), row = W * x.element_size();
  TORCH_CHECK(x.size(0) == K || x.size(0) == 1, "rms_norm: x has ", x.size(0), " tracks, weight ", K);
  check(weight, "rms_norm: weight", x.scalar_type(), {K, W});
  Tensor xs = x.contiguous(), y = at::empty({K, T, W}, x.options());
  for_each_row(K * T, W, [&](int64_t i) {
    const char* from = bytes(xs) + (x.size(0) == 1 ? i % T : i) * row;
    path().norm(bf16, from, bytes(weight) + i / T * row, static_cast<float>(eps), W, mutable_bytes(y) + i * row);
  });
  return y;
}

}  // namespace trtllm_pt
