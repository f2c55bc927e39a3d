// An instruction path: the kernels of path.cpp compiled for one instruction set, as a table of functions.
//
// Shapes: T tokens, K tracks, W hidden size, H heads and G KV heads of a track, D head size, F intermediate size,
// P cache pages, I inputs of a product. e: elements in 4 bytes (2 in bfloat16, 1 in float32).
//
// Packed weights: tiles of 16 outputs, [tiles, I/e, 16, e]. A step is one 64-byte line of a tile: e inputs of 16 outputs.
// A page of keys is one such tile (16 keys are the outputs, D the inputs); a page of values is D/16 tiles with the 16 keys
// as inputs. So weights, scores and values all go through the one product kernel.
//
// Nothing here may include a header with inline functions that the linker merges: the copy compiled for the newest
// instruction set could win, and an older machine would run it.
#pragma once
#include <cstdint>

namespace trtllm_pt {

constexpr int64_t kTile = 16;         // outputs in a tile of packed weights
constexpr int64_t kPanel = 4;         // tiles that one call of `linear` computes
constexpr int64_t kPage = 16;         // tokens in a KV page
constexpr int64_t kBlock = 8;         // pages in a block of keys; blocks begin at multiples of 128 tokens
constexpr int64_t kLinearRows = 256;  // most rows in one call of `linear`
constexpr int64_t kQueryRows = 48;    // most rows (token, head) in one call of `attend`
constexpr int64_t kMaxHeadSize = 256;
constexpr int64_t kMaxParts = 256;  // most summands of one tree

// How numbers lie in memory. kRounded: float32 that holds what bfloat16 can hold.
enum class Kind { kFloat, kBFloat16, kRounded };

// Outputs [begin, end) of a panel for some rows of x. x is in the path's operand kind, its rows padded to whole steps.
// A panel of SwiGLU holds tiles of the gate and as many of `up`: y = silu(x gate) * (x up).
struct Linear {
  bool bf16;            // of the weights
  const void* x;        // [rows, x_stride]
  int64_t x_stride, rows;
  const char* w;        // first tile of the panel
  int64_t tiles, steps;
  int64_t up;           // bytes from a tile of the gate to its tile of `up`; 0: not SwiGLU
  const void* bias;     // of output 0 of the panel, in the weights' dtype, or null
  void* y;              // y of output 0 of the panel, row 0
  int64_t y_stride;
  Kind y_kind;
  int64_t begin, end;
  int64_t next;         // bytes from the panel to the one that the same thread reads next, or 0
};

struct Attention {
  bool bf16;
  const void* qkv;       // [K, T, (H + 2G) D]
  const float* rotary;   // [T, D] cos | sin, or null
  const void* q_norm;    // [K, D] or null
  const void* k_norm;    // [K, D] or null
  bool norm_last;        // after RoPE
  char* cache;           // [2, P, K G, kPage D]
  const int64_t* starts;   // [B]
  const int64_t* offsets;  // [B + 1]
  const int64_t* pages;    // [B, max_pages]
  int64_t tokens, tracks, heads, kv_heads, head_size, cache_pages, max_pages, window;
  float eps;
  char* queries;  // [K, G, T, H/G, D] in the path's operand kind
  void* out;      // [K, T, H D]
};

struct Path {
  const char* name;
  Kind operand;  // of the left side of a product with bfloat16 weights: kBFloat16, or kRounded without an instruction for it
  void (*linear)(const Linear&);
  // y[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps)
  void (*norm)(bool bf16, const void* x, const void* weight, float eps, int64_t n, void* y);
  // the sum of x[i] * w[i], w in float32
  float (*dot)(bool bf16, const void* x, const float* w, int64_t n);
  // y[i] = the sum of weights[j] * rows[j][i], j ascending
  void (*combine)(const float* const* rows, const float* weights, int64_t count, int64_t n, bool bf16, void* y);
  // y[i] = scale * the sum of x[part][i] along the binary tree over the parts, i from begin to end
  void (*tree_sum)(bool x_bf16, const void* const* x, int64_t parts, int64_t begin, int64_t end, float scale, bool y_bf16,
                   void* y);
  // Norm and positions; queries into `queries`, keys and values of a sequence's tokens [begin, end) into the cache.
  void (*write)(const Attention&, int64_t track, int64_t sequence, int64_t begin, int64_t end);
  // Rows (token, head of the KV head's group) [begin, end) of a sequence against all its keys.
  void (*attend)(const Attention&, int64_t track, int64_t kv_head, int64_t sequence, int64_t begin, int64_t end);
};

// The path of this process: the best that the machine has, or the one that TRTLLM_PT_ISA names.
const Path& path();

}  // namespace trtllm_pt
