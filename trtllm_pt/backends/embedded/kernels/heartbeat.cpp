// Two heartbeats, by which ranks notice others that have stopped; mpirun notices those that exit. Whoever notices one
// names it and exits the process, which ends the job. Otherwise all ranks would wait in a collective, where Python
// cannot run.
//
// Between the ranks of a machine, a thread of every rank writes the time to its slot of a shared page, and looks at the
// others' times. Between machines, a thread in the first rank of each sends datagrams to the others: when a machine has
// lost its power or its link, TCP alone would wait for minutes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <torch/library.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace trtllm_pt {
namespace {

constexpr int kFailed = 1;  // exit status of a failure while running
constexpr int64_t kBeatNanoseconds = 100'000'000;
constexpr char kBeat = '+', kLastBeat = '.';
constexpr int kLastBeats = 3;  // how often the last one is sent, because datagrams get lost

struct Slot {
  std::atomic<int64_t> stamp;  // time in nanoseconds; 0: not started yet, -1: no longer watched
  std::atomic<int64_t> pid;
  std::atomic<int64_t> rank;  // its number in the job
};

Slot* slots = nullptr;
int64_t own = 0;

int64_t monotonic_nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);  // the same clock in all processes of a machine
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

// Calls beat(time, slept) every kBeatNanoseconds, until it returns false. slept: whether this thread slept for a good
// part of `limit` in between. Then the whole machine may have been suspended, and nobody is late.
template <class F>
void every_beat(int64_t limit, const F& beat) {
  int64_t last = monotonic_nanoseconds();
  while (true) {
    const int64_t time = monotonic_nanoseconds();
    if (!beat(time, time - last > limit / 2)) return;
    last = time;
    const timespec pause{0, kBeatNanoseconds};
    nanosleep(&pause, nullptr);
  }
}

[[noreturn]] void end_all(const std::string& who, int64_t limit) {
  std::fprintf(stderr, "trtllm-pt: error: %s has not answered for %.0f s; all ranks end\n", who.c_str(), limit / 1e9);
  std::fflush(stderr);
  _exit(kFailed);
}

void watch(int64_t ranks, int64_t limit) {
  every_beat(limit, [&](int64_t time, bool slept) {
    if (slots[own].stamp < 0) return false;
    slots[own].stamp = time;
    for (Slot* slot = slots; slot < slots + ranks && !slept; slot++)
      if (const int64_t stamp = slot->stamp; stamp > 0 && time - stamp >= limit)
        end_all("rank " + std::to_string(slot->rank) + " (process " + std::to_string(slot->pid) + ")", limit);
    return true;
  });
}

// Starts the thread between the ranks of this machine. path: a file of zeros that they share, with 24 bytes for each.
// rank: the number of this rank in the job. slot: its number among the `ranks` of this machine.
void watch_ranks(c10::string_view path, int64_t rank, int64_t slot, int64_t ranks, double seconds) {
  const std::string name(path);
  const int file = open(name.c_str(), O_RDWR);
  TORCH_CHECK(file >= 0, "watch_ranks: cannot open ", name);
  void* page = mmap(nullptr, ranks * sizeof(Slot), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  TORCH_CHECK(page != MAP_FAILED, "watch_ranks: cannot map ", name);
  slots = static_cast<Slot*>(page);
  own = slot;
  slots[own].pid = getpid();
  slots[own].rank = rank;
  slots[own].stamp = monotonic_nanoseconds();
  std::thread(watch, ranks, static_cast<int64_t>(seconds * 1e9)).detach();
}

struct Machine {
  std::string name;
  int socket;  // connected to this machine, so that no other is heard
  int64_t heard;
  bool left = false;
};

std::vector<Machine> machines;  // the others
std::atomic<bool> watches_machines{false};

void watch_others(int64_t limit) {
  every_beat(limit, [&](int64_t time, bool slept) {
    for (Machine& machine : machines) {
      send(machine.socket, &kBeat, 1, MSG_DONTWAIT);
      // A failure is that of a datagram sent before, whose receiver is gone.
      for (char beat; recv(machine.socket, &beat, 1, MSG_DONTWAIT) == 1; machine.heard = time)
        machine.left |= beat == kLastBeat;
      if (slept) machine.heard = time;
      if (watches_machines && !machine.left && time - machine.heard >= limit) end_all(machine.name, limit);
    }
    return watches_machines.load();
  });
}

// Starts the thread between machines. names: those of the other machines. sockets: a datagram socket for each,
// connected to the one of its first rank; they stay open.
void watch_machines(const std::vector<std::string>& names, at::IntArrayRef sockets, double seconds) {
  TORCH_CHECK(names.size() == sockets.size(), "watch_machines: ", names.size(), " names, ", sockets.size(), " sockets");
  for (size_t i = 0; i < names.size(); i++)
    machines.push_back({names[i], static_cast<int>(sockets[i]), monotonic_nanoseconds()});
  watches_machines = true;
  std::thread(watch_others, static_cast<int64_t>(seconds * 1e9)).detach();
}

// Ends the watch before this rank exits normally: the others stop watching it, and it stops watching them.
void leave_watch() {
  if (slots) slots[own].stamp = -1;
  if (!watches_machines.exchange(false)) return;
  for (int beat = 0; beat < kLastBeats; beat++)
    for (const Machine& machine : machines) send(machine.socket, &kLastBeat, 1, MSG_DONTWAIT);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trtllm_pt, m) {
  m.def("watch_ranks(str path, int rank, int slot, int ranks, float seconds) -> ()", watch_ranks);
  m.def("watch_machines(str[] names, int[] sockets, float seconds) -> ()", watch_machines);
  m.def("leave_watch() -> ()", leave_watch);
}

}  // namespace trtllm_pt
