// A heartbeat between ranks: a thread of every rank writes the time to its slot of a shared page. If the time of
// another rank is too old, the thread names that rank and exits the process, which ends the job. Otherwise a rank that
// is stopped or starved would block all others in a collective, where Python cannot run. (mpirun notices a rank that
// exits.)
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <torch/library.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

namespace trtllm_pt {
namespace {

constexpr int kFailed = 1;  // exit status of a failure while running
constexpr int64_t kBeatNanoseconds = 100'000'000;

struct Slot {
  std::atomic<int64_t> stamp;  // time in nanoseconds; 0: not started yet, -1: no longer watched
  std::atomic<int64_t> pid;
};

Slot* slots = nullptr;
int64_t own = 0;

int64_t monotonic_nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);  // the same clock in all processes of a machine
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

void watch(int64_t ranks, int64_t limit) {
  int64_t last = monotonic_nanoseconds();
  while (slots[own].stamp >= 0) {
    // If this thread slept too, the whole machine may have been suspended, and no rank is late.
    const int64_t time = monotonic_nanoseconds();
    const bool slept = time - last > limit / 2;
    last = time;
    slots[own].stamp = time;
    for (int64_t rank = 0; rank < ranks && !slept; rank++) {
      const int64_t stamp = slots[rank].stamp;
      if (stamp <= 0 || time - stamp < limit) continue;
      std::fprintf(stderr, "trtllm-pt: error: rank %ld (process %ld) has not answered for %.0f s; all ranks end\n",
                   rank, slots[rank].pid.load(), limit / 1e9);
      std::fflush(stderr);
      _exit(kFailed);
    }
    const timespec pause{0, kBeatNanoseconds};
    nanosleep(&pause, nullptr);
  }
}

// Starts the thread. `path` is a file of zeros that all ranks of this machine share, with 16 bytes per rank.
void watch_ranks(c10::string_view path, int64_t rank, int64_t ranks, double seconds) {
  const std::string name(path);
  const int file = open(name.c_str(), O_RDWR);
  TORCH_CHECK(file >= 0, "watch_ranks: cannot open ", name);
  void* page = mmap(nullptr, ranks * sizeof(Slot), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  TORCH_CHECK(page != MAP_FAILED, "watch_ranks: cannot map ", name);
  slots = static_cast<Slot*>(page);
  own = rank;
  slots[rank].pid = getpid();
  slots[rank].stamp = monotonic_nanoseconds();
  std::thread(watch, ranks, static_cast<int64_t>(seconds * 1e9)).detach();
}

// Ends the watch before this rank exits normally: the other ranks stop watching it, and it stops watching them.
void leave_watch() {
  if (slots) slots[own].stamp = -1;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trtllm_pt, m) {
  m.def("watch_ranks(str path, int rank, int ranks, float seconds) -> ()", watch_ranks);
  m.def("leave_watch() -> ()", leave_watch);
}

}  // namespace trtllm_pt
