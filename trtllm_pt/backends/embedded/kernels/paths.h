// An instruction path: the kernels of path.cpp compiled for one instruction set, as a table of functions.
//
// Shapes: T tokens, K tracks, W hidden size, H heads and G KV heads of a track, D head size, F intermediate size,
// P cache pages, I inputs of a product. e: elements in 4 bytes (2 in bfloat16, 1 in float32).
//
// Packed weights are tiles of 16 outputs, [tiles, I/e, 16, e]. A step is one 64-byte line of a tile: e inputs of 16
// outputs. A page of keys is one such tile (its 16 keys are the outputs, D the inputs); a page of values is D/16 tiles
// with the 16 keys as inputs. So weights, scores and values all use the same product kernel.
//
// Quantised weights are integers, called codes, with scales: w = scale * (code - zero point). An output's codes for one
// group of consecutive inputs share a scale and a zero point. A packed tile begins with the 16 scales of each group,
// then the 16 zero points of each group if there are any, in the model's dtype and padded to whole lines. Its codes
// follow, in lines of 4 inputs in int8, [4, 16] bytes, or of 8 inputs in int4, [16] words of 4 bytes: input i of an
// output is in bits 16 (i % 2) + 4 (i / 2) of its word.
//
// A product of integers quantises each row of x as well: x = scale * code, where the scale is the row's largest
// magnitude divided by 127. The products of codes are summed in int32, which is exact. A group's sum is scaled as that
// of any quantised weights, and the row's scale is applied last.
//
// In an int8 cache, a page has codes in place of values, in the same order, and then a scale for each of its 16 tokens:
// an element is scale * code, where the scale is the largest magnitude of the token's D elements divided by 127.
//
// A gated FFN computes down(silu(gate x) * (up x)): the gate is the matrix whose outputs pass through the activation.
//
// One-definition rule: path.cpp is compiled several times with different -m flags, and its objects are linked together.
// The linker keeps only one copy of an inline function or template instance with external linkage. This could be the
// copy for the newest instruction set, which an older processor cannot execute. Therefore this header includes no
// header with such functions, and everything in the headers of path.cpp (simd.h, product.h, amx.h, linear.h, rows.h,
// attention.h, codes.h) is in an anonymous namespace. tests/backends/embedded/kernels/test_instructions.py checks the
// objects.
#pragma once
#include <cstdint>

namespace trtllm_pt {

// Sizes that constants.py has too. library.py compares them when it loads the library.
constexpr int64_t kTile = 16;      // outputs per tile of packed weights
constexpr int64_t kStepBytes = 4;  // bytes of one output's inputs in a step
constexpr int64_t kPage = 16;      // tokens per KV page
constexpr int64_t kMaxHeadSize = 256;
constexpr int64_t kMaxSummands = 256;  // the most summands of one tree sum

constexpr int64_t kLineBytes = kTile * kStepBytes;  // a step of a tile, and a cache line
constexpr int64_t kPanel = 4;                       // tiles that one call of `linear` computes
constexpr int64_t kGroupStep = 32;                  // groups of quantised weights are multiples of these inputs
constexpr int64_t kBlockPages = 8;                  // pages in a block of keys; blocks begin at multiples of 128 tokens
constexpr int64_t kMaxIntegers = 65536;             // inputs of a product of integers, so that sums fit into int32
constexpr int64_t kLinearRows = 256;                // maximum number of rows in one call of `linear`
constexpr int64_t kQueryRows = 48;                  // maximum number of rows (token, head) in one call of `attend`
constexpr int64_t kScoreBlock = 256;                // logits in a block of a log-softmax; blocks begin at multiples

// How numbers are stored. kRounded: as float32, with values that bfloat16 can represent.
enum class Kind { kFloat, kBFloat16, kRounded };

// How a product's weights are stored, and the bytes of a tile.
struct Form {
  int64_t bits;    // of a code: 8 or 4; 0: the weights are not quantised
  int64_t groups;  // of inputs
  bool zeros;      // whether groups have zero points
  int64_t header;  // bytes of a tile before its codes
  int64_t tile;    // bytes of a tile
  bool integer;    // whether products are of integers: x is quantised as well
};

// One panel of a linear layer for some rows of x: y[row, j] = sum over i of x[row, i] w[j, i], + bias[j], for outputs j
// of the panel in [begin, end). A SwiGLU panel holds tiles of the gate followed by the same number of tiles of `up`,
// and y = silu(gate x) * (up x). x is in the path's operand kind, its rows padded to whole steps.
struct Linear {
  bool bf16;      // whether the weights, or their scales, are bfloat16
  const void* x;  // [rows, x_stride]
  int64_t x_stride, rows;
  const float* x_sums;    // [rows, groups]: the sum of x over each group; only for zero points or integers
  const float* x_scales;  // [rows]: the scales of x in a product of integers, or null
  Form form;
  const char* w;         // the panel's first tile
  int64_t tiles, steps;  // a step has the inputs that 4 bytes hold in the model's dtype
  int64_t gate_to_up;    // bytes from a tile of the gate to its tile of `up`; 0: not SwiGLU
  const void* bias;      // bias of the panel's output 0, in the model's dtype, or null
  void* y;               // output 0 of the panel and row 0
  int64_t y_stride;
  Kind y_kind;
  int64_t begin, end;
  // Bytes from this panel to the one that the same thread reads next, or 0 (product.h, Prefetch).
  int64_t to_next_panel;
};

// The arguments of one call of the attention op, for all its sequences.
struct Attention {
  bool bf16;
  const void* qkv;      // [K, T, (H + 2G) D]
  const float* rotary;  // [T, D]: cos, then sin; or null
  const void* q_norm;   // [K, D] or null
  const void* k_norm;   // [K, D] or null
  bool norm_after_rope;
  bool int8_cache;         // whether a page has codes and the float32 scales of its 16 tokens behind them
  int64_t page_bytes;      // of one KV head
  char* cache;             // [2, P, K G] pages, keys and then values
  const int64_t* starts;   // [B]: position of each sequence's first token in this step
  const int64_t* offsets;  // [B + 1]: where each sequence's tokens begin and end
  const int64_t* pages;    // [B, max_pages]
  int64_t tokens, tracks, heads, kv_heads, head_size, cache_pages, max_pages, window;
  float eps;
  char* queries;  // [K, G, T, H/G, D] in the path's operand kind
  void* out;      // [K, T, H D]
};

struct Path {
  const char* name;
  Kind operand;  // kind of x in a product with bfloat16 weights: kBFloat16, or kRounded without an instruction for it
  int64_t code_bytes;  // of a code of x in a product of integers
  void (*linear)(const Linear&);
  // y[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps)
  void (*norm)(bool bf16, const void* x, const void* weight, float eps, int64_t n, void* y);
  // Returns the sum of x[i] * w[i], with w in float32.
  float (*dot)(bool bf16, const void* x, const float* w, int64_t n);
  // y[i] = the sum of x over [i n, (i + 1) n), for i < groups. x is in the path's operand kind.
  void (*group_sums)(bool bf16, const void* x, int64_t groups, int64_t n, float* y);
  // Quantises x [n], a row of a product of integers with weights of this form:
  // writes its codes, and their sum over each group. Returns the scale.
  float (*quantize)(bool bf16, const void* x, const Form&, int64_t n, void* codes, float* sums);
  // y[i] = the sum of weights[j] * rows[j][i], j ascending.
  void (*combine)(const float* const* rows, const float* weights, int64_t count, int64_t n, bool bf16, void* y);
  // y[i] = scale * the sum of x[part][i] along the binary tree over the parts, for i from begin to end.
  void (*tree_sum)(bool x_bf16, const void* const* x, int64_t parts, int64_t begin, int64_t end, float scale,
                   bool y_bf16, void* y);
  // most = the largest of kScoreBlock logits; sum = the sum of e^(x[i] - most), or 0 if all are -inf, NaN if one is
  // NaN.
  void (*exp_sum)(const float* x, float* most, float* sum);
  // Applies norm and RoPE to a sequence's tokens [begin, end), and writes queries to `queries`, keys and values to the
  // cache.
  void (*write_cache)(const Attention&, int64_t track, int64_t sequence, int64_t begin, int64_t end);
  // Computes the attention of the rows (token, head of the KV head's group) [begin, end) of a sequence.
  void (*attend)(const Attention&, int64_t track, int64_t kv_head, int64_t sequence, int64_t begin, int64_t end);
};

// build.py compiles path.cpp to one object for each of these paths.
namespace portable {
extern const Path table;
}
namespace avx2 {
extern const Path table;
}
namespace avx512 {
extern const Path table;
}
namespace avx512_bf16 {
extern const Path table;
}
namespace avx512_amx {
extern const Path table;
}

// Returns this process's path: the best one that the processor supports, or the one that TRTLLM_PT_ISA names.
const Path& path();

}  // namespace trtllm_pt
