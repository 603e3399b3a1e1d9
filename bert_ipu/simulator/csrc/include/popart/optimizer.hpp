#pragma once

#include <popart/names.hpp>
#include <popart/optimizervalue.hpp>

namespace popart {

enum class OptimizerType { SGD = 0, Adam, Adaptive, NTYPES };

// The kind of optimizer a program trains with.
class Optimizer {
public:
  virtual ~Optimizer() = default;
  virtual OptimizerType type() const = 0;
};

class SGD : public Optimizer {
public:
  OptimizerType type() const final { return OptimizerType::SGD; }
};

class Adam : public Optimizer {
public:
  OptimizerType type() const final { return OptimizerType::Adam; }
};

} // namespace popart
