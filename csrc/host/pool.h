// A small thread pool: torch's OpenMP runtime is not ours to share, and a second one in the process swings timings 40x.
#pragma once
#include <cstdint>
#include <functional>

namespace imnet {

// Calls body(begin, end) over 0 .. n in pieces of at most `grain`, on at most num_threads threads, the caller among them.
// A second caller at the same time runs its own range alone; a forked child gets a fresh pool.
void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace imnet
