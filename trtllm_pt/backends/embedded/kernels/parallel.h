// Divides work over torch's threads, but never along a summed axis, so the results do not depend on the division.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace trtllm_pt {

// Calls f(unit, claim) for each unit in [0, count), on the next thread that is free, because units may take different
// times and other processes may use the cores. f calls claim() exactly once and returns its result, which is the
// thread's next unit, or at least `count` if none is left. A thread that claims before its unit is done knows what it
// will read next.
template <class F>
void for_each_unit_claimed_ahead(int64_t count, const F& f) {
  std::atomic<int64_t> next{0};
  auto claim = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  auto work = [&](int64_t, int64_t) {
    for (int64_t unit = claim(); unit < count;) unit = f(unit, claim);
  };
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, work);
}

// Calls f(unit) for each unit in [0, count), on the next thread that is free.
template <class F>
void for_each_unit(int64_t count, const F& f) {
  for_each_unit_claimed_ahead(count, [&](int64_t unit, const auto& claim) {
    f(unit);
    return claim();
  });
}

// Calls f(i) for i in [0, count), rows of about `cost` elements each, in equal shares per thread. Too few elements are
// not worth waking a thread.
template <class F>
void for_each_row(int64_t count, int64_t cost, const F& f) {
  constexpr int64_t kGrain = 16384;
  at::parallel_for(0, count, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; i++) f(i);
                   });
}

}  // namespace trtllm_pt
