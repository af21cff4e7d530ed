// A memory-mapped file that may lose its data while it is read.
#pragma once
#include <cstddef>

namespace imnet {

// The first `length` bytes of an open file, read-only. If the file is truncated or its disk fails, reading a mapped page
// raises SIGBUS, which ends a process without a message. Here lost pages read as zeros, and torn() is true from then on.
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
