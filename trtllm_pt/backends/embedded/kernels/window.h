// Memory that the ranks of one machine share: a slot for every rank and one for results, all twice, to be used in turn,
// and a mark of how far each rank has come.
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

  static int64_t bytes(int64_t ranks) { return ranks * int64_t{sizeof(Mark)} + 2 * (ranks + 1) * kSlotBytes; }

  // `memory` begins a cache line. The ranks have to meet by other means before they first do here.
  void open(void* memory, int64_t rank, int64_t ranks) {
    marks_ = static_cast<Mark*>(memory);
    rank_ = rank, ranks_ = ranks, met_ = round_ = 0;
    marks_[rank].met = 0;
  }

  void close() { marks_ = nullptr; }
  bool is_open() const { return marks_ != nullptr; }

  // From here on the other half is used. All ranks have met since they read there: they meet in every round.
  void next_round() { round_++; }
  char* slot(int64_t rank) const {
    return reinterpret_cast<char*>(marks_ + ranks_) + (round_ % 2 * (ranks_ + 1) + rank) * kSlotBytes;
  }
  char* results() const { return slot(ranks_); }

  // Waits for all ranks, and sees what they have written. Ranks may outnumber cores: who waits long lets others run.
  void meet() {
    constexpr int kSpins = 100;  // some microseconds
    marks_[rank_].met.store(++met_, std::memory_order_release);
    for (int64_t rank = 0; rank < ranks_; rank++)
      for (int spins = 0; marks_[rank].met.load(std::memory_order_acquire) < met_; spins++)
        spins < kSpins ? _mm_pause() : static_cast<void>(sched_yield());
  }

 private:
  struct alignas(128) Mark {  // processors fetch lines in pairs
    std::atomic<int64_t> met;
  };
  static_assert(std::atomic<int64_t>::is_always_lock_free);

  Mark* marks_ = nullptr;
  int64_t rank_ = 0, ranks_ = 0, met_ = 0, round_ = 0;
};

// Copies past the caches. A line that lies modified in the cache of another core is slow to fetch, and fetched alone,
// where two cores have no cache in common; of lines in memory many come at once. `to` begins a block of 16 bytes.
inline void stream(char* to, const char* from, int64_t bytes) {
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  std::memcpy(to + i, from + i, bytes - i);
  _mm_sfence();  // before this thread tells anybody
}

}  // namespace trtllm_pt
