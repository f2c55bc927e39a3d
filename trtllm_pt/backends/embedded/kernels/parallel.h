// Splitting work over torch's threads. Never along a summed axis, so the split cannot change a bit.
#pragma once
#include <ATen/Parallel.h>

#include <atomic>

namespace trtllm_pt {

// f(i, claim) for i in [0, count), each handed to the next free thread: units of unequal length, cores that others use too.
// Some time on its way f calls claim() once, and returns what that gave: the thread's next unit, or `count` or more.
template <class F>
void for_each_unit(int64_t count, const F& f) {
  std::atomic<int64_t> next{0};
  auto claim = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  auto work = [&](int64_t, int64_t) {
    for (int64_t i = claim(); i < count;) i = f(i, claim);
  };
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, work);
}

// f(i) for rows of about `cost` elements each; a handful of rows is not worth waking a thread.
template <class F>
void for_each_row(int64_t count, int64_t cost, const F& f) {
  constexpr int64_t kGrain = 16384;
  at::parallel_for(0, count, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) f(i);
  });
}

}  // namespace trtllm_pt
