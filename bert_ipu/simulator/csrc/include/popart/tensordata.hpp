#pragma once

#include <cstring>
#include <vector>

#include <popart/tensorinfo.hpp>

namespace popart {

// The value of a constant.
class TensorData {
public:
  TensorData(const void *source, std::size_t bytes)
      : data_(static_cast<const char *>(source),
              static_cast<const char *>(source) + bytes) {}
  const void *data() const { return data_.data(); }
  void *data() { return data_.data(); }
  std::size_t size() const { return data_.size(); }
  template <typename T> std::vector<T> copyDataAs(int expectedSize) const {
    std::vector<T> result(static_cast<std::size_t>(expectedSize));
    std::memcpy(result.data(), data_.data(), result.size() * sizeof(T));
    return result;
  }

private:
  std::vector<char> data_;
};

} // namespace popart
