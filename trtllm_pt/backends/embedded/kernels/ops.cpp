// The ops of the embedded engine: schemas, checks, and the split over threads. The arithmetic is in path.cpp.
//
// Shapes: T tokens in the call, K tracks on this rank, W hidden size, H heads and G KV heads of a track, D head size,
// F intermediate size, E experts, B sequences, P cache pages. dtype is bfloat16 or float32, one for all of an op's tensors.
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "parallel.h"
#include "paths.h"

namespace trtllm_pt {

namespace portable { extern const Path table; }
namespace avx2 { extern const Path table; }
namespace avx512 { extern const Path table; }
namespace avx512_bf16 { extern const Path table; }
namespace avx512_amx { extern const Path table; }

// ---- the instruction path

// Whether the processor multiplies bfloat16 in tiles, and the kernel lets this process's threads have them (from Linux
// 5.16 on). Weak: tests put an emulator of the instructions in its place.
extern "C" __attribute__((weak, visibility("default"))) bool trtllm_pt_may_use_tiles() {
  constexpr unsigned kTiles = 1u << 24, kBFloat16 = 1u << 22;  // CPUID leaf 7, EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kBFloat16) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

static std::vector<const Path*> available_paths() {  // worst first
  std::vector<const Path*> found;
  if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")) found.push_back(&portable::table);
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
            __builtin_cpu_supports("bmi2");
  if (v3) found.push_back(&avx2::table);
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4) found.push_back(&avx512::table);
  if (v4 && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16::table);
  return found;
}

static const Path& choose_path() {
  auto found = available_paths();
  TORCH_CHECK(!found.empty(), "this machine's processor lacks SSE4.2, which the trtllm_pt ops need at least");
  const char* wish = std::getenv("TRTLLM_PT_ISA");
  if (!wish || !*wish) return *found.back();
  // By name only, as long as no run of the tests has seen a processor that has it.
  if (found.back() == &avx512_bf16::table && trtllm_pt_may_use_tiles()) found.push_back(&avx512_amx::table);
  std::string names;
  for (const Path* path : found) {
    if (path->name == std::string(wish)) return *path;
    names += (names.empty() ? "" : ", ") + std::string(path->name);
  }
  TORCH_CHECK(false, "TRTLLM_PT_ISA=", wish, " is not an instruction path of this machine; it has ", names);
}

const Path& path() {
  static const Path& chosen = choose_path();
  return chosen;
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- checks

bool is_bf16(const Tensor& t, const char* name) {
  auto dtype = t.scalar_type();
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, name, " must be bfloat16 or float32, is ", dtype);
  return dtype == at::kBFloat16;
}

void check(const Tensor& t, const char* name, at::ScalarType dtype, at::IntArrayRef shape) {
  TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", dtype, ", is ", t.scalar_type());
  TORCH_CHECK(t.sizes() == shape, name, " must have shape ", shape, ", has ", t.sizes());
  TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

void check_dims(const Tensor& t, const char* name, int64_t dims) {
  TORCH_CHECK(t.dim() == dims, name, " must have ", dims, " dimensions, has shape ", t.sizes());
}

int64_t pack_of(bool bf16) { return bf16 ? 2 : 1; }
int64_t steps_of(bool bf16, int64_t inputs) { return (inputs + pack_of(bf16) - 1) / pack_of(bf16); }
int64_t tiles_of(int64_t outputs) { return (outputs + kTile - 1) / kTile; }
const char* bytes(const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); }
char* mutable_bytes(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }

// Packed weights [*lead, outputs, inputs] as pack() leaves them.
void check_packed(const Tensor& w, const char* name, const Tensor& x, std::vector<int64_t> lead, int64_t outputs,
                  int64_t inputs) {
  bool bf16 = is_bf16(x, "x");
  lead.insert(lead.end(), {tiles_of(outputs), steps_of(bf16, inputs), kTile * pack_of(bf16)});
  check(w, name, x.scalar_type(), lead);
}

// ---- products

// x [.., I] as the path wants the left side of a product: rows of whole steps, float32 where bfloat16 has no instruction.
Tensor as_operand(const Tensor& x) {
  bool bf16 = x.scalar_type() == at::kBFloat16;
  Tensor y = bf16 && path().operand == Kind::kRounded ? x.to(at::kFloat) : x;
  if (bf16 && x.size(-1) % 2) y = at::constant_pad_nd(y, {0, 1});
  return y.contiguous();
}

struct Product {
  const char* x;
  int64_t rows;
  const char* w;
  const char* bias;  // or null
  char* y;           // of output 0
};

// Of a product with few rows, a thread takes panels that lie one after the other: what it prefetches is its own.
int64_t panels_of_a_unit(int64_t panels, int64_t panel_bytes) {
  constexpr int64_t kUnitBytes = 256 << 10, kUnitsPerThread = 8;
  return std::max<int64_t>(1, std::min(kUnitBytes / panel_bytes, panels / (kUnitsPerThread * at::get_num_threads())));
}

// Outputs [begin, end) of several products of one shape; the threads share panels and blocks of rows.
void multiply(const std::vector<Product>& products, Linear common, int64_t x_bytes, int64_t y_bytes) {
  int64_t rows = 0;
  for (const auto& p : products) rows = std::max(rows, p.rows);
  const int64_t places = common.up ? 2 : 1, tiles = kPanel / places, width = tiles * kTile;
  const int64_t blocks = (rows + kLinearRows - 1) / kLinearRows, panels = (common.end + width - 1) / width;
  const int64_t all = static_cast<int64_t>(products.size()) * panels, tile_bytes = common.steps * 64;
  const int64_t taken = blocks > 1 ? 1 : panels_of_a_unit(all, kPanel * tile_bytes);
  auto weights_of = [&](int64_t number) { return products[number / panels].w + number % panels * tiles * tile_bytes; };
  auto multiply_panel = [&](int64_t number, int64_t row, int64_t next) {
    const Product& p = products[number / panels];
    const int64_t panel = number % panels, output = panel * width;
    if (row >= p.rows) return;
    Linear a = common;
    a.rows = std::min(kLinearRows, p.rows - row);
    a.x = p.x + row * a.x_stride * x_bytes;
    a.w = weights_of(number);
    a.tiles = std::min(tiles, tiles_of(common.end) - panel * tiles) * places;
    a.bias = p.bias ? p.bias + output * (a.bf16 ? 2 : 4) : nullptr;
    a.y = p.y + (row * a.y_stride + output) * y_bytes;
    a.begin = std::max<int64_t>(0, common.begin - output);
    a.end = std::min(width, common.end - output);
    a.next = next < all ? weights_of(next) - a.w : 0;
    path().linear(a);
  };
  for_each_unit((all + taken - 1) / taken * blocks, [&](int64_t unit, const auto& claim) {
    const int64_t row = unit % blocks * kLinearRows, first = unit / blocks * taken, last = std::min(all, first + taken) - 1;
    for (int64_t i = first; i < last; i++) multiply_panel(i, row, i + 1);
    const int64_t next = claim();
    multiply_panel(last, row, next / blocks * taken);
    return next;
  });
}

Linear shape_of(bool bf16, const Tensor& operand, int64_t steps, int64_t y_stride, Kind y_kind, int64_t begin, int64_t end) {
  Linear a{};
  a.bf16 = bf16, a.x_stride = operand.size(-1), a.steps = steps, a.y_stride = y_stride, a.y_kind = y_kind;
  a.begin = begin, a.end = end;
  return a;
}

Tensor pack(const Tensor& w) {
  TORCH_CHECK(w.dim() >= 2, "pack: w must have at least 2 dimensions, has shape ", w.sizes());
  const int64_t e = pack_of(is_bf16(w, "pack: w")), n = w.size(-2), inputs = w.size(-1);
  const int64_t tiles = tiles_of(n), steps = (inputs + e - 1) / e;
  auto shape = w.sizes().vec();
  shape.resize(shape.size() - 2);
  const int64_t lead = c10::multiply_integers(shape);
  Tensor padded = at::constant_pad_nd(w, {0, steps * e - inputs, 0, tiles * kTile - n});
  shape.insert(shape.end(), {tiles, steps, kTile * e});
  return padded.reshape({lead, tiles, kTile, steps, e}).permute({0, 1, 3, 2, 4}).contiguous().view(shape);
}

// y [K, T, n], track by track. up: as in Linear, between the halves of a track's weights.
Tensor multiply_tracks(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t n, int64_t up) {
  const bool bf16 = x.scalar_type() == at::kBFloat16;
  const int64_t K = x.size(0), T = x.size(1), size = x.element_size();
  Tensor y = at::empty({K, T, n}, x.options()), operand = as_operand(x);
  std::vector<Product> products;
  for (int64_t k = 0; k < K; k++)
    products.push_back({bytes(operand) + k * T * operand.size(-1) * operand.element_size(), T,
                        bytes(w) + k * w.stride(0) * size, bias ? bytes(*bias) + k * n * size : nullptr,
                        mutable_bytes(y) + k * T * n * size});
  Linear shape = shape_of(bf16, operand, w.size(-2), n, bf16 ? Kind::kBFloat16 : Kind::kFloat, 0, n);
  shape.up = up;
  multiply(products, shape, operand.element_size(), size);
  return y;
}

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t n) {
  check_dims(x, "linear: x", 3);
  is_bf16(x, "linear: x");
  check_packed(w, "linear: w", x, {x.size(0)}, n, x.size(2));
  if (bias) check(*bias, "linear: bias", x.scalar_type(), {x.size(0), n});
  return multiply_tracks(x, w, bias, n, 0);
}

Tensor linear_swiglu(const Tensor& x, const Tensor& w, int64_t n) {
  check_dims(x, "linear_swiglu: x", 3);
  is_bf16(x, "linear_swiglu: x");
  check_packed(w, "linear_swiglu: w", x, {x.size(0), 2}, n, x.size(2));
  return multiply_tracks(x, w, std::nullopt, n, w.stride(1) * w.element_size());
}

Tensor head(const Tensor& x, const Tensor& table, const Tensor& first_row, int64_t n) {
  check_dims(x, "head: x", 2);
  check_dims(table, "head: table", 3);
  const bool bf16 = is_bf16(x, "head: x");
  const int64_t T = x.size(0), rows = table.size(0) * kTile;
  check_packed(table, "head: table", x, {}, rows, x.size(1));
  check(first_row, "head: first", at::kLong, {1});
  const int64_t first = *first_row.const_data_ptr<int64_t>(), count = std::clamp<int64_t>(rows - first, 0, n);
  TORCH_CHECK(first >= 0, "head: first must not be negative, is ", first);
  auto options = x.options().dtype(at::kFloat);
  if (count == 0) return at::full({T, n}, -std::numeric_limits<float>::infinity(), options);
  Tensor y = count == n ? at::empty({T, n}, options) : at::full({T, n}, -std::numeric_limits<float>::infinity(), options);
  Tensor operand = as_operand(x);
  const int64_t begin = first % kTile, tile_bytes = table.size(1) * 64;
  Product product{bytes(operand), T, bytes(table) + first / kTile * tile_bytes, nullptr, mutable_bytes(y) - begin * 4};
  multiply({product}, shape_of(bf16, operand, table.size(1), n, Kind::kFloat, begin, begin + count), operand.element_size(),
           4);
  return y;
}

Tensor gather_rows(const Tensor& ids, const Tensor& table, int64_t width) {
  check_dims(ids, "gather_rows: ids", 1);
  check_dims(table, "gather_rows: table", 3);
  const int64_t T = ids.size(0), rows = table.size(0) * kTile, size = table.element_size(), steps = table.size(1);
  check(ids, "gather_rows: ids", at::kLong, {T});
  check_packed(table, "gather_rows: table", table, {}, rows, width);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < T; t++)
    TORCH_CHECK(id[t] >= 0 && id[t] < rows, "gather_rows: id ", id[t], " of token ", t, " is outside the table's ", rows,
                " rows");
  Tensor y = at::empty({T, width}, table.options());
  for_each_row(T, width, [&](int64_t t) {
    const char* from = bytes(table) + (id[t] / kTile * steps * kTile + id[t] % kTile) * 4;
    char* to = mutable_bytes(y) + t * width * size;
    for (int64_t step = 0; step < steps; step++)
      memcpy(to + step * 4, from + step * kTile * 4, std::min<int64_t>(4, width * size - step * 4));
  });
  return y;
}

// ---- rows

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

// ---- positions and attention

void check_sequences(const char* op, const Tensor& starts, const Tensor& offsets, int64_t T) {
  check_dims(starts, op, 1);
  const int64_t B = starts.size(0);
  check(starts, "starts", at::kLong, {B});
  check(offsets, "offsets", at::kLong, {B + 1});
  const int64_t *start = starts.const_data_ptr<int64_t>(), *offset = offsets.const_data_ptr<int64_t>();
  TORCH_CHECK(offset[0] == 0 && offset[B] == T, op, ": offsets must go from 0 to the ", T, " tokens, go from ", offset[0],
              " to ", offset[B]);
  for (int64_t b = 0; b < B; b++) {
    TORCH_CHECK(offset[b] <= offset[b + 1], op, ": offsets must not descend, sequence ", b, " has ", offset[b], " and ",
                offset[b + 1]);
    TORCH_CHECK(start[b] >= 0, op, ": start of sequence ", b, " must not be negative, is ", start[b]);
  }
}

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

struct Span {
  int64_t sequence, begin, end;
};

Tensor attention(const Tensor& qkv, const OptionalTensor& rotary, const OptionalTensor& q_norm, const OptionalTensor& k_norm,
                 Tensor cache, const Tensor& starts, const Tensor& offsets, const Tensor& pages, int64_t H, int64_t D,
                 int64_t window, double eps, bool norm_after_rope) {
  check_dims(qkv, "attention: qkv", 3);
  check_dims(cache, "attention: cache", 4);
  check_dims(pages, "attention: pages", 2);
  const bool bf16 = is_bf16(qkv, "attention: qkv");
  const int64_t K = qkv.size(0), T = qkv.size(1), width = qkv.size(2), B = starts.size(0);
  TORCH_CHECK(D % kTile == 0 && D > 0 && D <= kMaxHeadSize, "attention: head_size must be a multiple of ", kTile, " up to ",
              kMaxHeadSize, ", is ", D);
  const int64_t G = (width / D - H) / 2;
  TORCH_CHECK(H > 0 && G > 0 && (H + 2 * G) * D == width && H % G == 0, "attention: qkv of width ", width, " is not ", H,
              " heads and twice a divisor of that in KV heads, each of size ", D);
  check_sequences("attention", starts, offsets, T);
  check(cache, "attention: cache", qkv.scalar_type(), {2, cache.size(1), K * G, kPage * D});
  check(pages, "attention: pages", at::kLong, {B, pages.size(1)});
  if (rotary) check(*rotary, "attention: rotary", at::kFloat, {T, D});
  if (q_norm) check(*q_norm, "attention: q_norm", qkv.scalar_type(), {K, D});
  if (k_norm) check(*k_norm, "attention: k_norm", qkv.scalar_type(), {K, D});

  Tensor rows = qkv.contiguous(), out = at::empty({K, T, H * D}, qkv.options());
  const auto operand = bf16 && path().operand == Kind::kBFloat16 ? at::kBFloat16 : at::kFloat;
  Tensor queries = at::empty({K, T, H, D}, qkv.options().dtype(operand));
  Attention a{};
  a.bf16 = bf16, a.qkv = bytes(rows), a.cache = mutable_bytes(cache);
  a.rotary = rotary ? rotary->const_data_ptr<float>() : nullptr;
  a.q_norm = q_norm ? bytes(*q_norm) : nullptr, a.k_norm = k_norm ? bytes(*k_norm) : nullptr;
  a.norm_last = norm_after_rope;
  a.starts = starts.const_data_ptr<int64_t>(), a.offsets = offsets.const_data_ptr<int64_t>();
  a.pages = pages.const_data_ptr<int64_t>();
  a.tokens = T, a.tracks = K, a.heads = H, a.kv_heads = G, a.head_size = D, a.window = window;
  a.cache_pages = cache.size(1), a.max_pages = pages.size(1), a.eps = static_cast<float>(eps);
  a.queries = mutable_bytes(queries), a.out = mutable_bytes(out);

  // Small spans where there are fewer rows than threads could take.
  const int64_t group = H / G, lanes = K * G, threads = at::get_num_threads();
  const int64_t most_rows = std::clamp<int64_t>((lanes * T * group + threads - 1) / threads, 1, kQueryRows);
  std::vector<Span> writes, reads;
  for (int64_t b = 0; b < B; b++) {
    const int64_t start = a.starts[b], count = a.offsets[b + 1] - a.offsets[b];
    if (count == 0) continue;
    const int64_t oldest = window > 0 ? std::max<int64_t>(0, start - window + 1) : 0, last = (start + count - 1) / kPage;
    TORCH_CHECK(last < a.max_pages, "attention: sequence ", b, " ends at position ", start + count - 1, ", beyond its ",
                a.max_pages, " pages of ", kPage);
    for (int64_t page = oldest / kPage; page <= last; page++) {
      const int64_t number = a.pages[b * a.max_pages + page];
      TORCH_CHECK(number >= 0 && number < a.cache_pages, "attention: page ", page, " of sequence ", b, " is number ", number,
                  ", outside the cache's ", a.cache_pages);
    }
    for (int64_t m = 0, end; m < count; m = end) {
      end = std::min(count, ((start + m) / kPage + 1) * kPage - start);
      writes.push_back({b, m, end});
    }
    for (int64_t row = 0; row < count * group; row += most_rows)
      reads.push_back({b, row, std::min(count * group, row + most_rows)});
  }
  const int64_t tokens_each = (T + static_cast<int64_t>(writes.size()) - 1) / std::max<int64_t>(1, writes.size());
  for_each_row(writes.size() * K, tokens_each * width, [&](int64_t unit) {
    const Span& s = writes[unit / K];
    path().write(a, unit % K, s.sequence, s.begin, s.end);
  });
  for_each_unit(reads.size() * lanes, [&](int64_t unit, const auto& claim) {
    const Span& s = reads[reads.size() - 1 - unit / lanes];  // the longest first
    path().attend(a, unit % lanes / G, unit % G, s.sequence, s.begin, s.end);
    return claim();
  });
  return out;
}

// ---- experts

struct Choice {
  int64_t expert;
  float weight;
};

// The top_k experts of one token, the best first, with the softmax over them.
void route(const float* logits, int64_t E, int64_t top_k, Choice* chosen) {
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

Tensor experts(const Tensor& x, const Tensor& router, const Tensor& gate_up, const Tensor& down, int64_t top_k, double cap,
               int64_t F) {
  check_dims(x, "experts: x", 3);
  check_dims(router, "experts: router", 3);
  const bool bf16 = is_bf16(x, "experts: x");
  const int64_t K = x.size(0), T = x.size(1), W = x.size(2), E = router.size(1);
  check(router, "experts: router", at::kFloat, {K, E, W});
  TORCH_CHECK(top_k >= 1 && top_k <= E, "experts: top_k must be from 1 to the ", E, " experts, is ", top_k);
  check_packed(gate_up, "experts: gate_up", x, {K, E, 2}, F, W);
  check_packed(down, "experts: down", x, {K, E}, W, F);

  // Routing: choice c = (track * T + token) * top_k + rank.
  Tensor xs = x.contiguous();
  std::vector<Choice> choices(K * T * top_k);
  for_each_row(K * T, E * W, [&](int64_t i) {
    std::vector<float> logits(E);
    for (int64_t e = 0; e < E; e++) {
      const float* w = router.const_data_ptr<float>() + (i / T * E + e) * W;
      logits[e] = path().dot(bf16, bytes(xs) + i * W * x.element_size(), w, W);
      if (cap > 0) logits[e] = static_cast<float>(cap) * std::tanh(logits[e] / static_cast<float>(cap));
    }
    route(logits.data(), E, top_k, &choices[i * top_k]);
  });

  // Choices of one expert side by side, so that its weights are read once: slot[c] is where choice c went.
  std::vector<int64_t> begin(K * E + 1, 0), slot(choices.size());
  auto expert_of = [&](size_t c) { return static_cast<int64_t>(c) / (T * top_k) * E + choices[c].expert; };
  for (size_t c = 0; c < choices.size(); c++) begin[expert_of(c) + 1]++;
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> next(begin);
  for (size_t c = 0; c < choices.size(); c++) slot[c] = next[expert_of(c)]++;

  const int64_t slots = choices.size(), inner = steps_of(bf16, F) * pack_of(bf16);
  Tensor operand = as_operand(xs);
  const int64_t size = operand.element_size(), row = operand.size(-1) * size;
  Tensor grouped = at::empty({slots, operand.size(-1)}, operand.options());
  for_each_row(slots, W, [&](int64_t c) {
    memcpy(mutable_bytes(grouped) + slot[c] * row, bytes(operand) + c / top_k * row, row);
  });

  // One product per expert that was chosen.
  auto multiply_each = [&](const Tensor& from, const Tensor& w, const Tensor& y, const Linear& shape) {
    std::vector<Product> products;
    for (int64_t e = 0; e < K * E; e++)
      if (begin[e] < begin[e + 1])
        products.push_back({bytes(from) + begin[e] * from.size(-1) * size, begin[e + 1] - begin[e],
                            bytes(w) + e * w.stride(1) * w.element_size(), nullptr,
                            mutable_bytes(y) + begin[e] * y.size(1) * y.element_size()});
    multiply(products, shape, size, y.element_size());
  };
  Tensor hidden = inner == F ? at::empty({slots, F}, operand.options()) : at::zeros({slots, inner}, operand.options());
  Linear swiglu = shape_of(bf16, grouped, gate_up.size(4), inner, bf16 ? path().operand : Kind::kFloat, 0, F);
  swiglu.up = gate_up.stride(2) * gate_up.element_size();
  multiply_each(grouped, gate_up, hidden, swiglu);
  Tensor each = at::empty({slots, W}, x.options().dtype(at::kFloat)), y = at::empty({K, T, W}, x.options());
  multiply_each(hidden, down, each, shape_of(bf16, hidden, down.size(3), W, Kind::kFloat, 0, W));

  for_each_row(K * T, top_k * W, [&](int64_t i) {
    std::vector<const float*> rows(top_k);
    std::vector<float> weights(top_k);
    for (int64_t r = 0; r < top_k; r++) {
      rows[r] = each.const_data_ptr<float>() + slot[i * top_k + r] * W;
      weights[r] = choices[i * top_k + r].weight;
    }
    path().combine(rows.data(), weights.data(), top_k, W, bf16, mutable_bytes(y) + i * W * x.element_size());
  });
  return y;
}

std::string isa() { return path().name; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(trtllm_pt, m) {
  m.def("pack(Tensor w) -> Tensor");
  m.def("linear(Tensor x, Tensor w, Tensor? bias, int n) -> Tensor");
  m.def("linear_swiglu(Tensor x, Tensor w, int n) -> Tensor");
  m.def("head(Tensor x, Tensor table, Tensor first, int n) -> Tensor");
  m.def("gather_rows(Tensor ids, Tensor table, int width) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("rotary(Tensor tokens, Tensor starts, Tensor offsets, Tensor inv_freq) -> Tensor");
  m.def(
      "attention(Tensor qkv, Tensor? rotary, Tensor? q_norm, Tensor? k_norm, Tensor(a!) cache, Tensor starts, "
      "Tensor offsets, Tensor pages, int heads, int head_size, int window, float eps, bool norm_after_rope) -> Tensor");
  m.def("experts(Tensor x, Tensor router, Tensor gate_up, Tensor down, int top_k, float cap, int intermediate) -> Tensor");
  m.def("isa() -> str", isa);
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
}

}  // namespace trtllm_pt
