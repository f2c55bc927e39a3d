// The all-reduce at block boundaries. It sums in float32 along a binary tree, first over the rank's tracks, then over
// the ranks.
//
// Ranks of one machine publish their sums in shared memory; ranks of several machines send them in messages. If
// machines have several ranks each, sums are added in shared memory first and then sent between the machines; the order
// of additions is the same, however the ranks are placed. An all-reduce that other ops run beside is two ops, of which
// the first sends messages and the second waits for them. MPI is not linked: when a communicator is set, its functions
// are looked up in the library that mpi4py has loaded. So a single rank needs no MPI, and the library contains no path
// to one. Types and constants are those of MPICH's mpi.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <dlfcn.h>
#include <mpi.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "parallel.h"
#include "paths.h"
#include "window.h"

#ifndef MPICH_NUMVERSION
#error "mpi.h is not MPICH's"
#endif

namespace trtllm_pt {
namespace {

using at::Tensor;

constexpr const char* kMpiLibrary = "libmpi.so.12";  // the soname of MPICH's ABI
// From this message size on, each rank reduces a slice. Over TCP, both methods took the same time at a size between 128
// and 512 KiB: for 2 ranks with links of 10 and 200 microseconds, and 4 ranks with links of 10 microseconds (trtllm-pt
// bench netlab).
constexpr int64_t kLargeBytes = 256 * 1024;
// kChunk: elements that ranks publish at once. kShares: from this number of elements on, more than two ranks share the
// work of the sum. Measured on 2 cores: of chunks of 8 Ki to 64 Ki elements, the largest was fastest; 4 ranks, two per
// core, were as fast with sharing at kShares and faster above it, although a barrier costs them a context switch.
constexpr int64_t kChunk = Window::kSlotBytes / sizeof(float), kShares = 32 * 1024;

struct Mpi {
  decltype(&MPI_Allgather) allgather = nullptr;
  decltype(&MPI_Alltoall) alltoall = nullptr;
  decltype(&MPI_Barrier) barrier = nullptr;
  decltype(&MPI_Bcast) bcast = nullptr;
  decltype(&MPI_Comm_free) comm_free = nullptr;
  decltype(&MPI_Comm_rank) comm_rank = nullptr;
  decltype(&MPI_Comm_set_errhandler) set_errhandler = nullptr;
  decltype(&MPI_Comm_size) comm_size = nullptr;
  decltype(&MPI_Comm_split_type) split_type = nullptr;
  decltype(&MPI_Irecv) irecv = nullptr;
  decltype(&MPI_Isend) isend = nullptr;
  decltype(&MPI_Waitall) waitall = nullptr;
  decltype(&MPI_Error_string) error_string = nullptr;
  decltype(&MPI_Win_allocate_shared) allocate_shared = nullptr;
  decltype(&MPI_Win_free) win_free = nullptr;
  decltype(&MPI_Win_shared_query) shared_query = nullptr;
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Win memory = MPI_WIN_NULL;  // the memory of `window`
  int rank = 0, ranks = 0;

  void check(int status, const char* call) const {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    error_string(status, text, &length);
    TORCH_CHECK(false, "all_reduce: ", call, " failed: ", std::string(text, length));
  }
};

// How the ranks lie on machines. Ranks g * size to (g + 1) * size - 1 are group g. Each group is on one machine, and
// its sum is a branch of the tree over all ranks, because `size` is a power of two.
struct Placement {
  int64_t size = 0;
  std::vector<int> leaders;        // the first rank on the machine of each group
  std::vector<int> other_leaders;  // of the other machines, each once
  std::vector<int64_t> nearby;     // of the groups on this machine: the number of their first rank among the ranks here
  int64_t first_here = 0;          // the rank that leads this machine
  int64_t count() const { return leaders.size(); }
};

Mpi mpi;
Window window;
Placement placement;  // `size` is 0 unless ranks are on several machines, and at least two on one of them
// Totals since the process started: calls; and for calls between ranks, the bytes of the float32 sums and the time from
// this rank's local sum to the result, including the wait for the other ranks.
std::atomic<int64_t> reduces{0}, reduced_bytes{0}, reduce_nanoseconds{0};

// leader: for each rank, the first rank on its machine.
Placement placement_of(const std::vector<int>& leader) {
  const int64_t ranks = leader.size();
  auto together = [&](int64_t size) {
    for (int64_t r = 0; r < ranks; r++)
      if (leader[r] != leader[r / size * size]) return false;
    return true;
  };
  Placement found;
  found.size = 1, found.first_here = leader[mpi.rank];
  for (int64_t r = 0; r < ranks; r++)
    if (leader[r] == r && r != found.first_here) found.other_leaders.push_back(leader[r]);
  while (2 * found.size < ranks && together(2 * found.size)) found.size *= 2;
  for (int64_t first = 0, here = 0; first < ranks; first += found.size) {
    found.leaders.push_back(leader[first]);
    if (leader[first] != found.first_here) continue;
    found.nearby.push_back(here);
    here += std::min(found.size, ranks - first);
  }
  return found;
}

// Opens the window of the ranks that can share memory, as MPI says, if one of them has others beside it.
void open_window() {
  MPI_Comm node;
  int rank = 0, neighbours = 0, leader = mpi.rank;
  mpi.check(mpi.split_type(mpi.comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  mpi.check(mpi.comm_size(node, &neighbours), "MPI_Comm_size");
  mpi.check(mpi.comm_rank(node, &rank), "MPI_Comm_rank");
  mpi.check(mpi.bcast(&leader, 1, MPI_INT, 0, node), "MPI_Bcast");
  std::vector<int> leaders(mpi.ranks);
  mpi.check(mpi.allgather(&leader, 1, MPI_INT, leaders.data(), 1, MPI_INT, mpi.comm), "MPI_Allgather");
  bool alone = true;
  for (int r = 0; r < mpi.ranks; r++) alone &= leaders[r] == r;
  placement = alone || neighbours == mpi.ranks ? Placement{} : placement_of(leaders);
  if (!alone) {
    void* base;
    const int64_t results = placement.size ? placement.count() : 1;
    MPI_Aint bytes = rank ? 0 : Window::bytes(neighbours, results);
    int unit;
    mpi.check(mpi.allocate_shared(bytes, 1, MPI_INFO_NULL, node, &base, &mpi.memory), "MPI_Win_allocate_shared");
    mpi.check(mpi.shared_query(mpi.memory, 0, &bytes, &unit, &base), "MPI_Win_shared_query");
    window.open(base, rank, neighbours, results);
    mpi.check(mpi.barrier(node), "MPI_Barrier");
  }
  mpi.check(mpi.comm_free(&node), "MPI_Comm_free");
}

// Sets the communicator of the all-reduce; every rank of it must call this. Returns whether all ranks share memory.
bool set_communicator(int64_t handle) {
  void* library = dlopen(kMpiLibrary, RTLD_LAZY | RTLD_NOLOAD);
  TORCH_CHECK(library, "set_communicator: ", kMpiLibrary,
              " is not loaded in this process; import mpi4py.MPI (over MPICH) first");
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    TORCH_CHECK(function, "set_communicator: ", kMpiLibrary, " has no ", name);
  };
  Mpi found;
  find(found.allgather, "MPI_Allgather");
  find(found.alltoall, "MPI_Alltoall");
  find(found.barrier, "MPI_Barrier");
  find(found.bcast, "MPI_Bcast");
  find(found.comm_free, "MPI_Comm_free");
  find(found.comm_rank, "MPI_Comm_rank");
  find(found.set_errhandler, "MPI_Comm_set_errhandler");
  find(found.comm_size, "MPI_Comm_size");
  find(found.split_type, "MPI_Comm_split_type");
  find(found.irecv, "MPI_Irecv");
  find(found.isend, "MPI_Isend");
  find(found.waitall, "MPI_Waitall");
  find(found.error_string, "MPI_Error_string");
  find(found.allocate_shared, "MPI_Win_allocate_shared");
  find(found.win_free, "MPI_Win_free");
  find(found.shared_query, "MPI_Win_shared_query");
  found.comm = MPI_Comm_f2c(static_cast<MPI_Fint>(handle));
  TORCH_CHECK(found.comm != MPI_COMM_NULL, "set_communicator: the communicator is null");
  found.check(found.set_errhandler(found.comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  found.check(found.comm_size(found.comm, &found.ranks), "MPI_Comm_size");
  found.check(found.comm_rank(found.comm, &found.rank), "MPI_Comm_rank");
  window.close();
  if (mpi.memory != MPI_WIN_NULL) mpi.check(mpi.win_free(&mpi.memory), "MPI_Win_free");
  mpi = found;
  open_window();
  return window.is_open() && !placement.size;
}

// The summands of one tree sum.
struct Parts {
  bool bf16;
  int64_t count;
  const void* at[kMaxSummands];

  Parts(bool bf16, const void* first, int64_t count, int64_t stride) : bf16(bf16), count(count) {  // stride: bytes
    for (int64_t p = 0; p < count; p++) at[p] = static_cast<const char*>(first) + p * stride;
  }
  int64_t size() const { return bf16 ? 2 : 4; }
  Parts from(int64_t element) const {
    Parts moved = *this;
    for (int64_t p = 0; p < count; p++) moved.at[p] = static_cast<const char*>(at[p]) + element * size();
    return moved;
  }
  Parts some(int64_t first, int64_t most) const {
    Parts found(bf16, nullptr, 0, 0);
    while (found.count < most && first + found.count < count) {
      found.at[found.count] = at[first + found.count];
      found.count++;
    }
    return found;
  }
  void sum(int64_t begin, int64_t end, float scale, bool y_bf16, void* y) const {
    path().tree_sum(bf16, at, count, begin, end, scale, y_bf16, y);
  }
};

// Calls f(begin, end) for slices of [0, n), divided over the threads.
template <class F>
void for_each_slice(int64_t n, int64_t parts, const F& f) {
  constexpr int64_t kSlice = 4096;
  for_each_row((n + kSlice - 1) / kSlice, parts * kSlice,
               [&](int64_t i) { f(i * kSlice, std::min((i + 1) * kSlice, n)); });
}

void sum(const Parts& parts, int64_t n, float scale, bool y_bf16, void* y) {
  for_each_slice(n, parts.count, [&](int64_t begin, int64_t end) { parts.sum(begin, end, scale, y_bf16, y); });
}

int64_t now() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Returns memory for `count` numbers, which stays allocated between calls. Freed memory would go back to the system,
// which zeroes it again.
float* scratch(int64_t count) {
  static std::unique_ptr<float[]> memory;
  static int64_t size = 0;
  if (count > size) memory.reset(new float[size = count]);
  return memory.get();
}

// Writes the sum of this rank's tracks to its slot. Returns the sums of all ranks of this machine, which may be read
// after the next barrier.
Parts publish(const Parts& tracks, int64_t n) {
  const bool single = tracks.count == 1;  // a single track is its own sum and is published in its own dtype
  float* sums = scratch(kChunk);
  Parts all(single && tracks.bf16, window.slot(0), window.ranks(), Window::kSlotBytes);
  const void* own = all.at[window.rank()] = single ? tracks.at[0] : sums;  // in this core's caches, unlike the slot
  for_each_slice(n, tracks.count, [&](int64_t begin, int64_t end) {
    if (!single) tracks.sum(begin, end, 1.f, false, sums);
    const int64_t from = begin * all.size(), to = end * all.size();
    nt_copy(window.slot(window.rank()) + from, static_cast<const char*>(own) + from, to - from);
  });
  return all;
}

// Every rank sums a share of the elements, publishes the result, and copies the results of the others.
void sum_by_shares(const Parts& all, int64_t n, float scale, bool bf16, char* y) {
  constexpr int64_t kWhole = 64;  // shares begin at whole cache lines
  const int64_t share = (n / mpi.ranks / kWhole + 1) * kWhole, size = bf16 ? 2 : 4;
  const int64_t first = std::min(n, mpi.rank * share), last = std::min(n, first + share);
  for_each_slice(last - first, mpi.ranks, [&](int64_t begin, int64_t end) {
    all.sum(first + begin, first + end, scale, bf16, y);
    const int64_t from = (first + begin) * size, to = (first + end) * size;
    nt_copy(window.results() + from, y + from, to - from);
  });
  window.barrier();
  std::memcpy(y, window.results(), first * size);
  std::memcpy(y + last * size, window.results() + last * size, (n - last) * size);
}

// All-reduce in shared memory, chunk by chunk: every rank publishes its local sums, then each rank sums all of them.
void reduce_in_window(const Parts& tracks, int64_t n, float scale, bool bf16, char* y) {
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t count = std::min(kChunk, n - done);
    window.next_round();
    const Parts all = publish(tracks.from(done), count);
    const int64_t began = now();
    window.barrier();
    char* to = y + done * (bf16 ? 2 : 4);
    if (mpi.ranks > 2 && count >= kShares)
      sum_by_shares(all, count, scale, bf16, to);
    else
      sum(all, count, scale, bf16, to);
    reduce_nanoseconds += now() - began;
  }
}

// Messages of float32 that are on their way. `call` is the name of `function`, which is MPI's to send or to receive.
struct Messages {
  std::vector<MPI_Request> requests;

  template <class F>
  void start(const char* call, F function, float* numbers, int64_t n, int peer, int64_t tag) {
    requests.emplace_back();
    mpi.check(
        function(numbers, static_cast<int>(n), MPI_FLOAT, peer, static_cast<int>(tag), mpi.comm, &requests.back()),
        call);
  }
  void wait() {
    mpi.check(mpi.waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
  }
};

// Sends this machine's groups of `sums` [groups, n] to the leaders of the other machines, and receives theirs.
void exchange(float* sums, int64_t n) {
  Messages messages;
  for (int64_t g = 0; g < placement.count(); g++) {
    if (placement.leaders[g] != mpi.rank)
      messages.start("MPI_Irecv", mpi.irecv, sums + g * n, n, placement.leaders[g], g);
    else
      for (const int peer : placement.other_leaders) messages.start("MPI_Isend", mpi.isend, sums + g * n, n, peer, g);
  }
  messages.wait();
}

// All-reduce of a small message in two levels: the leader of each machine sums the groups on it and exchanges the sums
// with the other leaders; then every rank sums the groups, which it finds in shared memory.
//
// Where m machines have s ranks each, next to each other, and a message has b bytes, every machine sends (m - 1) b
// bytes in one round of messages. An all-gather between all ranks by recursive doubling sends s * s * (m - 1) b bytes
// in log2(m) rounds. So this method is the default, although its speed has not been measured on machines of their own.
void reduce_in_groups(const Parts& tracks, int64_t n, float scale, bool bf16, char* y) {
  static_assert(kLargeBytes <= Window::kSlotBytes);  // the message fits into a slot, because it is small
  window.next_round();
  const Parts here = publish(tracks, n);
  const int64_t began = now();
  float* sums = reinterpret_cast<float*>(window.results());
  window.barrier();
  if (mpi.rank == placement.first_here) {
    for (int64_t g = 0, found = 0; g < placement.count(); g++) {
      if (placement.leaders[g] != mpi.rank) continue;
      sum(here.some(placement.nearby[found++], placement.size), n, 1.f, false, sums + g * n);
    }
    exchange(sums, n);
  }
  window.barrier();
  sum(Parts(false, sums, placement.count(), n * sizeof(float)), n, scale, bf16, y);
  reduce_nanoseconds += now() - began;
}

// All-reduce with small messages: every rank gathers the sums of all ranks and adds them in the same order.
void reduce_gathered(const Parts& tracks, int64_t n, float scale, bool bf16, char* y) {
  float* all = scratch(mpi.ranks * n);
  sum(tracks, n, 1.f, false, all + mpi.rank * n);
  const int64_t began = now();
  const int count = static_cast<int>(n);
  mpi.check(mpi.allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, count, MPI_FLOAT, mpi.comm), "MPI_Allgather");
  sum(Parts(false, all, mpi.ranks, n * sizeof(float)), n, scale, bf16, y);
  reduce_nanoseconds += now() - began;
}

// All-reduce with large messages: rank r sums slice r of all ranks and sends the result to all ranks. The last slice is
// padded.
void reduce_sliced(const Parts& tracks, int64_t n, float scale, bool bf16, char* y) {
  const int64_t slice = (n + mpi.ranks - 1) / mpi.ranks, padded = mpi.ranks * slice;
  float *local = scratch(3 * padded), *mine = local + padded, *finished = mine + padded;
  sum(tracks, n, 1.f, false, local);
  std::fill(local + n, mine, 0.f);
  const int64_t began = now();
  const int count = static_cast<int>(slice);
  const MPI_Datatype type = bf16 ? MPI_UINT16_T : MPI_FLOAT;  // MPI only copies bits, so any 2-byte type works
  char* own = reinterpret_cast<char*>(finished) + mpi.rank * slice * (bf16 ? 2 : 4);
  mpi.check(mpi.alltoall(local, count, MPI_FLOAT, mine, count, MPI_FLOAT, mpi.comm), "MPI_Alltoall");
  sum(Parts(false, mine, mpi.ranks, slice * sizeof(float)), slice, scale, bf16, own);
  mpi.check(mpi.allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, finished, count, type, mpi.comm), "MPI_Allgather");
  std::memcpy(y, finished, n * (bf16 ? 2 : 4));
  reduce_nanoseconds += now() - began;
}

void check_operands(const Tensor& x, int64_t ranks) {
  TORCH_CHECK(x.dim() == 3, "all_reduce: x must be [tracks, tokens, width], has shape ", x.sizes());
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat,
              "all_reduce: x must be bfloat16 or float32, is ", x.scalar_type());
  const int64_t K = x.size(0);
  TORCH_CHECK(K >= 1 && K <= kMaxSummands && ranks >= 1 && ranks <= kMaxSummands, "all_reduce: ", K, " tracks on ",
              ranks, " ranks; both must be from 1 to ", kMaxSummands);
  TORCH_CHECK(ranks == 1 || mpi.comm != MPI_COMM_NULL, "all_reduce: ", ranks, " ranks, but no communicator was set");
  TORCH_CHECK(ranks == 1 || mpi.ranks == ranks, "all_reduce: ", ranks, " ranks, but the communicator has ", mpi.ranks);
}

bool is_large(const Tensor& x) { return x.size(1) * x.size(2) * 4 >= kLargeBytes; }

// y[0] = scale * the sum over all tracks of all ranks of x[k], in float32, along a binary tree over this rank's tracks
// and then one over the ranks. If both numbers are powers of two, a single rank with all tracks gives the same bits.
// x [K, T, W] -> y [1, T, W] in x's dtype, the same on every rank
Tensor all_reduce(const Tensor& x, int64_t ranks, double scale) {
  check_operands(x, ranks);
  const bool bf16 = x.scalar_type() == at::kBFloat16, large = is_large(x);
  const int64_t K = x.size(0), T = x.size(1), W = x.size(2), n = T * W;
  reduces++;
  const Tensor xs = x.contiguous();
  const float factor = static_cast<float>(scale);
  Tensor y = at::empty({1, T, W}, x.options());
  const Parts tracks(bf16, xs.const_data_ptr(), K, n * xs.element_size());
  if (ranks == 1) {
    sum(tracks, n, factor, bf16, y.mutable_data_ptr());
    return y;
  }
  reduced_bytes += n * 4;
  const auto reduce = placement.size && !large              ? reduce_in_groups
                      : window.is_open() && !placement.size ? reduce_in_window
                      : large                               ? reduce_sliced
                                                            : reduce_gathered;
  reduce(tracks, n, factor, bf16, static_cast<char*>(y.mutable_data_ptr()));
  return y;
}

// An all-reduce that has started. `result` is complete, unless messages bring what it is the sum of.
struct InFlight {
  Tensor result;  // [1, T, W]
  float scale = 1.f;
  std::unique_ptr<float[]> sums;  // of all ranks [ranks, T W], of which this rank's is there
  Messages messages;
};

std::map<const void*, InFlight> in_flight;  // by the address of the tensor that start_all_reduce has returned

// Sends this rank's sum to all other ranks, and lets theirs arrive.
InFlight send_sum(const Tensor& x, float scale) {
  constexpr int64_t kTag = 1;  // a step plan has 0 on the same communicator
  const int64_t n = x.size(1) * x.size(2);
  InFlight all{
      at::empty({1, x.size(1), x.size(2)}, x.options()), scale, std::unique_ptr<float[]>(new float[mpi.ranks * n]), {}};
  float* own = all.sums.get() + mpi.rank * n;
  const Parts tracks(x.scalar_type() == at::kBFloat16, x.const_data_ptr(), x.size(0), n * x.element_size());
  sum(tracks, n, 1.f, false, own);
  for (int rank = 0; rank < mpi.ranks; rank++) {
    if (rank == mpi.rank) continue;
    all.messages.start("MPI_Irecv", mpi.irecv, all.sums.get() + rank * n, n, rank, kTag);
    all.messages.start("MPI_Isend", mpi.isend, own, n, rank, kTag);
  }
  reduces++, reduced_bytes += n * 4;
  return all;
}

// The same as all_reduce, but its result is that of finish_all_reduce, and other ops may run in between. The tensor
// that it returns only stands for the result: nobody writes or reads its numbers. All ranks must start their
// all-reduces in the same order. Ranks that share memory wait at once, as they do for large messages: the time of such
// an all-reduce is work, or the network's rate, and not the delay of a link.
Tensor start_all_reduce(const Tensor& x, int64_t ranks, double scale) {
  check_operands(x, ranks);
  const bool waits = ranks == 1 || window.is_open() || is_large(x);
  InFlight one = waits ? InFlight{all_reduce(x, ranks, scale), 1.f, nullptr, {}}
                       : send_sum(x.contiguous(), static_cast<float>(scale));
  Tensor started = at::empty_like(one.result);
  in_flight.insert_or_assign(started.const_data_ptr(), std::move(one));
  return started;
}

// Waits for the sums of the other ranks, and adds them in the order of all_reduce.
Tensor finish_all_reduce(const Tensor& started) {
  auto found = in_flight.extract(started.const_data_ptr());
  TORCH_CHECK(found, "finish_all_reduce: this all-reduce was not started, or is finished");
  InFlight& all = found.mapped();
  if (all.sums) {
    const int64_t n = all.result.numel(), began = now();
    all.messages.wait();
    sum(Parts(false, all.sums.get(), mpi.ranks, n * sizeof(float)), n, all.scale,
        all.result.scalar_type() == at::kBFloat16, all.result.mutable_data_ptr());
    reduce_nanoseconds += now() - began;
  }
  return all.result;
}

int64_t reduces_seen() { return reduces; }

std::tuple<int64_t, int64_t, double> reduce_totals() { return {reduces, reduced_bytes, reduce_nanoseconds * 1e-9}; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(trtllm_pt, m) {
  m.def("all_reduce(Tensor x, int ranks, float scale) -> Tensor");
  m.def("start_all_reduce(Tensor x, int ranks, float scale) -> Tensor");
  m.def("finish_all_reduce(Tensor started) -> Tensor");
  m.def("set_communicator(int handle) -> bool", set_communicator);
  m.def("reduces_seen() -> int", reduces_seen);
  m.def("reduce_totals() -> (int calls, int bytes, float seconds)", reduce_totals);
}

TORCH_LIBRARY_IMPL(trtllm_pt, CPU, m) {
  m.impl("all_reduce", all_reduce);
  m.impl("start_all_reduce", start_all_reduce);
  m.impl("finish_all_reduce", finish_all_reduce);
}

}  // namespace trtllm_pt
