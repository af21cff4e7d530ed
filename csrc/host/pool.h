// A small thread pool. torch's OpenMP runtime cannot be shared, and a second one in the process makes timings vary 40x.
#pragma once
#include <cstdint>
#include <functional>

namespace imnet {

// Calls body(begin, end) over 0 .. n in pieces of at most `grain`, on at most num_threads threads including the caller's.
// If another call is in progress, the caller runs its whole range alone. A forked child gets a new pool.
void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace imnet
