#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace imnet {
namespace {

struct Job {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t n, grain;
  int num_helpers;
};

class Pool {
 public:
  bool try_run(const Job& job) {
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    if (!alone.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (int(threads_.size()) < job.num_helpers) add_thread();
      job_ = job;
      next_ = 0;
      wanted_ = running_ = job.num_helpers;
      ++generation_;
    }
    wake_.notify_all();
    work(job);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    return true;
  }

 private:
  void add_thread() {
    threads_.emplace_back([this, seen = generation_]() mutable { serve(seen); });
    threads_.back().detach();  // runs until the process ends; the pool is never destroyed
  }

  void serve(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (wanted_ == 0) continue;
      --wanted_;
      const Job job = job_;
      lock.unlock();
      work(job);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  void work(const Job& job) {
    for (;;) {
      const int64_t begin = next_.fetch_add(job.grain);
      if (begin >= job.n) return;
      (*job.body)(begin, std::min(begin + job.grain, job.n));
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job job_{};
  std::atomic<int64_t> next_{0};
  uint64_t generation_ = 0;
  int wanted_ = 0, running_ = 0;
};

Pool* pool = nullptr;

void forget_pool() { pool = nullptr; }  // its threads did not survive the fork

Pool* get_pool() {
  static std::once_flag registered;
  static std::mutex guard;
  std::call_once(registered, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
  std::lock_guard<std::mutex> lock(guard);
  if (pool == nullptr) pool = new Pool;
  return pool;
}

}  // namespace

void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  const int64_t num_pieces = (n + grain - 1) / grain;
  const int num_helpers = int(std::min<int64_t>(num_threads, num_pieces)) - 1;
  if (num_helpers <= 0 || !get_pool()->try_run(Job{&body, n, grain, num_helpers})) body(0, n);
}

}  // namespace imnet
