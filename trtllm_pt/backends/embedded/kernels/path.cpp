// The kernels, written once on vectors of the native width; build.py compiles this file once per instruction set.
//
// The contract is that a row's result depends only on that row. Every sum has a fixed order: a product adds its inputs
// in ascending order to one accumulator per output, for any number of rows; other sums run over full vectors, of which
// the last is padded. fp-contract is off and fused multiply-adds are explicit, so the compiler cannot choose them
// differently in different loops.
#include "attention.h"
#include "linear.h"
#include "paths.h"
#include "product.h"
#include "rows.h"
#include "simd.h"

#define PATH_NAME_(x) #x
#define PATH_NAME(x) PATH_NAME_(x)

namespace trtllm_pt::TRTLLM_PT_PATH {

extern const Path table;
const Path table = {
    PATH_NAME(TRTLLM_PT_PATH),
#if defined(__AVX512BF16__)
    Kind::kBFloat16,
#else
    Kind::kRounded,
#endif
    sizeof(IntegerWeights::Operand),
    linear,
    norm,
    dot,
    group_sums,
    quantize,
    combine,
    tree_sum,
    exp_sum,
    write_cache,
    attend,
};

}  // namespace trtllm_pt::TRTLLM_PT_PATH
