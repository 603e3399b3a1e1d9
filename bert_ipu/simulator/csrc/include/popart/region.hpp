#pragma once

#include <functional>
#include <vector>

#include <popart/names.hpp>

namespace popart {
namespace view {

using LowBounds = std::vector<int64_t>;
using UppBounds = std::vector<int64_t>;

// A box of elements of a tensor.
class Region {
public:
  Region(const LowBounds &lower, const UppBounds &upper)
      : lower_(lower), upper_(upper) {}

  static Region getFull(const Shape &shape) {
    return Region(LowBounds(shape.size(), 0), shape);
  }
  static Region getEmpty(int64_t rank) {
    return Region(LowBounds(static_cast<size_t>(rank), 0),
                  UppBounds(static_cast<size_t>(rank), 0));
  }
  int64_t rank() const { return static_cast<int64_t>(lower_.size()); }
  int64_t nelms() const {
    int64_t n = 1;
    for (size_t i = 0; i < lower_.size(); ++i)
      n *= upper_[i] - lower_[i];
    return n;
  }
  bool isEmpty() const { return nelms() == 0; }
  const LowBounds &getLower() const { return lower_; }
  const UppBounds &getUpper() const { return upper_; }
  bool operator==(const Region &other) const {
    return lower_ == other.lower_ && upper_ == other.upper_;
  }

private:
  LowBounds lower_;
  UppBounds upper_;
};

using Regions = std::vector<Region>;
using RegMap = std::function<Regions(const Region &)>;

} // namespace view
} // namespace popart
