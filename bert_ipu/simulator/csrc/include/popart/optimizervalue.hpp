#pragma once

#include <utility>

namespace popart {

// A hyper-parameter: a number, and whether it may change between steps.
class OptimizerValue final {
public:
  OptimizerValue() : val_(0.0f), isConst_(true) {}
  OptimizerValue(float v) : val_(v), isConst_(true) {}
  OptimizerValue(float v, bool c) : val_(v), isConst_(c) {}
  OptimizerValue(std::pair<float, bool> x)
      : OptimizerValue(x.first, x.second) {}

  float val() const { return val_; }
  bool isConst() const { return isConst_; }
  bool operator==(const OptimizerValue &rhs) const {
    return val_ == rhs.val_ && isConst_ == rhs.isConst_;
  }

private:
  float val_;
  bool isConst_;
};

} // namespace popart
