#pragma once

namespace poprithms {
namespace memory {
namespace inplace {

// Which input of an op its output may take the memory of.
class Proposal {
public:
  explicit Proposal(int input) : input_(input) {}
  int inIndex() const { return input_; }

private:
  int input_;
};

} // namespace inplace
} // namespace memory
} // namespace poprithms
