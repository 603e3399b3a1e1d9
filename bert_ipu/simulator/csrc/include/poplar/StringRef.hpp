#pragma once

#include <cstddef>
#include <cstring>
#include <ostream>
#include <string>

namespace poplar {

// A view of text that someone else owns.
class StringRef {
public:
  StringRef() : data_(""), size_(0) {}
  StringRef(const char *text) : data_(text), size_(std::strlen(text)) {}
  StringRef(const char *text, std::size_t size) : data_(text), size_(size) {}
  StringRef(const std::string &text) : data_(text.data()), size_(text.size()) {}

  operator std::string() const { return std::string(data_, size_); }
  std::string cloneAsString() const { return std::string(data_, size_); }
  const char *data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

private:
  const char *data_;
  std::size_t size_;
};

inline std::ostream &operator<<(std::ostream &os, StringRef text) {
  return os << std::string(text);
}

} // namespace poplar
