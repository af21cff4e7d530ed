#include "mapped.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>

namespace imnet {
namespace {

// The mappings that the signal handler looks up. It must not lock, because the interrupted thread may hold the lock: so these
// are atomics in a fixed table.
struct Slot {
  std::atomic<bool> taken{false};
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<bool> torn{false};
};
constexpr int kSlots = 64;  // a run has one file per split; a mapping without a slot is not protected
Slot slots[kSlots];
struct sigaction earlier;
uintptr_t page_bytes;

// Replaces the mapping by zeros from the page that could not be read to the end of the file: in one piece, because the number
// of mappings is limited, and the run ends anyway. When the handler returns, the read is repeated.
bool patch(uintptr_t at) {
  for (Slot& slot : slots) {
    const uintptr_t begin = slot.begin.load(), end = slot.end.load();
    if (at < begin || at >= end) continue;
    const uintptr_t page = at & ~(page_bytes - 1);
    void* zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANON, -1, 0);
    if (zeros == MAP_FAILED) return false;
    slot.torn.store(true);
    return true;
  }
  return false;
}

void on_bus(int number, siginfo_t* info, void* context) {
  const int kept = errno;
  const bool patched = patch(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = kept;
  if (patched) return;
  if (earlier.sa_flags & SA_SIGINFO) {
    earlier.sa_sigaction(number, info, context);
  } else if (earlier.sa_handler == SIG_DFL || earlier.sa_handler == SIG_IGN) {
    sigaction(number, &earlier, nullptr);  // the read is repeated and ends the process as without this handler
  } else {
    earlier.sa_handler(number);
  }
}

void listen() {
  static std::once_flag once;
  std::call_once(once, [] {
    page_bytes = uintptr_t(sysconf(_SC_PAGESIZE));
    struct sigaction ours = {};
    ours.sa_sigaction = &on_bus;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &earlier);
  });
}

}  // namespace

Mapped::Mapped(int descriptor, size_t length) : length_(length) {
  listen();
  data_ = mmap(nullptr, length, PROT_READ, MAP_SHARED, descriptor, 0);
  if (data_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  for (int i = 0; i < kSlots && slot_ < 0; ++i) {
    if (slots[i].taken.exchange(true)) continue;
    slot_ = i;
    slots[i].torn.store(false);
    slots[i].begin.store(reinterpret_cast<uintptr_t>(data_));
    slots[i].end.store(reinterpret_cast<uintptr_t>(data_) + length);
  }
}

Mapped::~Mapped() {
  if (slot_ >= 0) slots[slot_].end.store(0);
  munmap(data_, length_);
  if (slot_ >= 0) slots[slot_].taken.store(false);
}

bool Mapped::torn() const { return slot_ >= 0 && slots[slot_].torn.load(); }

}  // namespace imnet
