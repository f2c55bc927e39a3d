// The boundary's all-reduce: float32, along a binary tree over the tracks, first the local ones, then the ranks.
//
// MPI is not linked. Its functions are looked up, when a communicator is set, in the library that mpi4py has loaded: a
// process of one rank needs no MPI, and no path to one is baked in. Types and constants are those of MPICH's mpi.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <mpi.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <string>
#include <tuple>

#include "parallel.h"
#include "paths.h"

#ifndef MPICH_NUMVERSION
#error "mpi.h is not MPICH's"
#endif

namespace trtllm_pt {
namespace {

using at::Tensor;

constexpr const char* kMpiLibrary = "libmpi.so.12";  // the soname of MPICH's ABI
constexpr int64_t kLargeBytes = 256 * 1024;          // of a message; from here on every rank reduces a slice

struct Mpi {
  decltype(&MPI_Allgather) allgather = nullptr;
  decltype(&MPI_Alltoall) alltoall = nullptr;
  decltype(&MPI_Comm_size) comm_size = nullptr;
  decltype(&MPI_Comm_set_errhandler) set_errhandler = nullptr;
  decltype(&MPI_Error_string) error_string = nullptr;
  MPI_Comm comm = MPI_COMM_NULL;
  int ranks = 0;

  void check(int status, const char* call) const {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    error_string(status, text, &length);
    TORCH_CHECK(false, "all_reduce: ", call, " failed: ", std::string(text, length));
  }
};

Mpi mpi;
// Since the process began: calls; and of those between ranks the bytes of the messages, and the time from this rank's
// local sum to the result, the wait for the others included.
std::atomic<int64_t> reduces{0}, reduced_bytes{0}, reduce_nanoseconds{0};

void set_communicator(int64_t handle) {
  void* library = dlopen(kMpiLibrary, RTLD_LAZY | RTLD_NOLOAD);
  TORCH_CHECK(library, "set_communicator: ", kMpiLibrary, " is not loaded in this process; import mpi4py.MPI (over MPICH) first");
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    TORCH_CHECK(function, "set_communicator: ", kMpiLibrary, " has no ", name);
  };
  Mpi found;
  find(found.allgather, "MPI_Allgather");
  find(found.alltoall, "MPI_Alltoall");
  find(found.comm_size, "MPI_Comm_size");
  find(found.set_errhandler, "MPI_Comm_set_errhandler");
  find(found.error_string, "MPI_Error_string");
  found.comm = MPI_Comm_f2c(static_cast<MPI_Fint>(handle));
  TORCH_CHECK(found.comm != MPI_COMM_NULL, "set_communicator: the communicator is null");
  found.check(found.set_errhandler(found.comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  found.check(found.comm_size(found.comm, &found.ranks), "MPI_Comm_size");
  mpi = found;
}

// The tree over `parts` rows of x, `stride` apart, the elements split over the threads.
void tree_sum(bool x_bf16, const void* x, int64_t parts, int64_t stride, int64_t n, float scale, bool y_bf16, void* y) {
  constexpr int64_t kSlice = 4096;
  for_each_row((n + kSlice - 1) / kSlice, parts * kSlice, [&](int64_t i) {
    const char* from = static_cast<const char*>(x) + i * kSlice * (x_bf16 ? 2 : 4);
    char* to = static_cast<char*>(y) + i * kSlice * (y_bf16 ? 2 : 4);
    path().tree_sum(x_bf16, from, parts, stride, std::min(kSlice, n - i * kSlice), scale, y_bf16, to);
  });
}

// Small: everybody gathers everything and sums it alike.
void reduce_gathered(float* local, int64_t n, int64_t ranks, float scale, bool bf16, void* y, at::TensorOptions floats) {
  Tensor all = at::empty({ranks, n}, floats);
  const int count = static_cast<int>(n);
  mpi.check(mpi.allgather(local, count, MPI_FLOAT, all.mutable_data_ptr(), count, MPI_FLOAT, mpi.comm), "MPI_Allgather");
  tree_sum(false, all.const_data_ptr(), ranks, n, n, scale, bf16, y);
}

// Large: rank r sums slice r of all ranks, in the same order as above, and hands round the finished slice.
// `local` and `y` hold whole slices, the last one padded.
void reduce_sliced(float* local, int64_t slice, int64_t ranks, float scale, bool bf16, void* y, at::TensorOptions floats) {
  Tensor mine = at::empty({ranks, slice}, floats), done = at::empty({slice}, floats);
  const int count = static_cast<int>(slice);
  const MPI_Datatype type = bf16 ? MPI_UINT16_T : MPI_FLOAT;  // bits, not numbers: any type of that size will do
  mpi.check(mpi.alltoall(local, count, MPI_FLOAT, mine.mutable_data_ptr(), count, MPI_FLOAT, mpi.comm), "MPI_Alltoall");
  tree_sum(false, mine.const_data_ptr(), ranks, slice, slice, scale, bf16, done.mutable_data_ptr());
  mpi.check(mpi.allgather(done.const_data_ptr(), count, type, y, count, type, mpi.comm), "MPI_Allgather");
}

Tensor all_reduce(const Tensor& x, int64_t ranks, double scale) {
  TORCH_CHECK(x.dim() == 3, "all_reduce: x must be [tracks, tokens, width], has shape ", x.sizes());
  const bool bf16 = x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(bf16 || x.scalar_type() == at::kFloat, "all_reduce: x must be bfloat16 or float32, is ", x.scalar_type());
  const int64_t K = x.size(0), T = x.size(1), W = x.size(2), n = T * W;
  TORCH_CHECK(K >= 1 && K <= kMaxParts && ranks >= 1 && ranks <= kMaxParts, "all_reduce: ", K, " tracks on ", ranks,
              " ranks; both must be from 1 to ", kMaxParts);
  TORCH_CHECK(ranks == 1 || mpi.comm != MPI_COMM_NULL, "all_reduce: ", ranks, " ranks, but no communicator was set");
  TORCH_CHECK(ranks == 1 || mpi.ranks == ranks, "all_reduce: ", ranks, " ranks, but the communicator has ", mpi.ranks);
  reduces++;
  const Tensor xs = x.contiguous();
  const float factor = static_cast<float>(scale);
  if (ranks == 1) {
    Tensor y = at::empty({1, T, W}, x.options());
    tree_sum(bf16, xs.const_data_ptr(), K, n, n, factor, bf16, y.mutable_data_ptr());
    return y;
  }
  const int64_t slice = (n + ranks - 1) / ranks;
  const auto floats = x.options().dtype(at::kFloat);
  Tensor local = at::empty({ranks * slice}, floats), y = at::empty({ranks * slice}, x.options());
  float* sums = local.mutable_data_ptr<float>();
  tree_sum(bf16, xs.const_data_ptr(), K, n, n, 1.f, false, sums);
  const auto began = std::chrono::steady_clock::now();
  if (n * 4 < kLargeBytes) {
    reduce_gathered(sums, n, ranks, factor, bf16, y.mutable_data_ptr(), floats);
  } else {
    std::fill(sums + n, sums + ranks * slice, 0.f);
    reduce_sliced(sums, slice, ranks, factor, bf16, y.mutable_data_ptr(), floats);
  }
  reduced_bytes += n * 4;
  reduce_nanoseconds += std::chrono::nanoseconds(std::chrono::steady_clock::now() - began).count();
  return y.narrow(0, 0, n).view({1, T, W});
}

int64_t reduces_seen() { return reduces; }

std::tuple<int64_t, int64_t, double> reduce_totals() { return {reduces, reduced_bytes, reduce_nanoseconds * 1e-9}; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(trtllm_pt, m) {
  m.def("all_reduce(Tensor x, int ranks, float scale) -> Tensor");
  m.def("set_communicator(int handle) -> ()", set_communicator);
  m.def("reduces_seen() -> int", reduces_seen);
  m.def("reduce_totals() -> (int calls, int bytes, float seconds)", reduce_totals);
}

TORCH_LIBRARY_IMPL(trtllm_pt, CPU, m) { m.impl("all_reduce", all_reduce); }

}  // namespace trtllm_pt
