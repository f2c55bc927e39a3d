// Memory that the ranks of one machine share: slots for every rank and for results, in two sets that are used in turn,
// and a counter for each rank of the barriers that it has reached.
#pragma once
#include <emmintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace trtllm_pt {

class Window {
 public:
  static constexpr int64_t kSlotBytes = 256 * 1024;

  static int64_t bytes(int64_t ranks, int64_t results) {
    return ranks * int64_t{sizeof(Mark)} + 2 * (ranks + results) * kSlotBytes;
  }

  // `memory` is aligned to a cache line. Before the first barrier, the ranks must synchronize by other means.
  // results: the number of slots for results, which follow each other.
  void open(void* memory, int64_t rank, int64_t ranks, int64_t results) {
    marks_ = static_cast<Mark*>(memory);
    rank_ = rank, ranks_ = ranks, results_ = results, barriers_ = round_ = 0;
    marks_[rank].reached = 0;
  }

  void close() { marks_ = nullptr; }
  bool is_open() const { return marks_ != nullptr; }
  int64_t rank() const { return rank_; }
  int64_t ranks() const { return ranks_; }

  // Switches to the other set of slots. Every round has a barrier, so all ranks have finished reading that set.
  void next_round() { round_++; }
  char* slot(int64_t rank) const {
    return reinterpret_cast<char*>(marks_ + ranks_) + (round_ % 2 * (ranks_ + results_) + rank) * kSlotBytes;
  }
  char* results() const { return slot(ranks_); }

  // Waits for all ranks, whose earlier writes are then visible. There may be more ranks than cores, so a long wait
  // yields the core.
  void barrier() {
    constexpr int kSpins = 100;  // a few microseconds
    marks_[rank_].reached.store(++barriers_, std::memory_order_release);
    for (int64_t rank = 0; rank < ranks_; rank++)
      for (int spins = 0; marks_[rank].reached.load(std::memory_order_acquire) < barriers_; spins++)
        spins < kSpins ? _mm_pause() : static_cast<void>(sched_yield());
  }

 private:
  struct alignas(128) Mark {  // two cache lines, because processors fetch lines in pairs
    std::atomic<int64_t> reached;
  };
  static_assert(std::atomic<int64_t>::is_always_lock_free);

  Mark* marks_ = nullptr;
  int64_t rank_ = 0, ranks_ = 0, results_ = 0, barriers_ = 0, round_ = 0;
};

// Copies with non-temporal stores, which bypass the caches. If two cores share no cache, fetching a modified line from
// the other core's cache is slow, and lines are fetched one at a time, whereas many lines are fetched from memory at
// once. `to` is aligned to 16 bytes.
inline void nt_copy(char* to, const char* from, int64_t bytes) {
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  std::memcpy(to + i, from + i, bytes - i);
  _mm_sfence();  // the stores are visible before this thread reaches the barrier
}

}  // namespace trtllm_pt
