// A file in memory that may lose its bytes while it is read.
#pragma once
#include <cstddef>

namespace imnet {

// The first `length` bytes of an open file, read-only. Where the file is cut short or its disk fails, a read of a mapped page
// raises SIGBUS, which ends a process without a word. Here what is gone reads as zeros, and `torn` says so from then on.
class Mapped {
 public:
  Mapped(int descriptor, size_t length);  // throws std::system_error
  ~Mapped();
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  const void* data() const { return data_; }
  size_t length() const { return length_; }
  bool torn() const;

 private:
  void* data_;
  size_t length_;
  int slot_ = -1;
};

}  // namespace imnet
