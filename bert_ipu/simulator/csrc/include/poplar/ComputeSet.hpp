#pragma once

#include <memory>

namespace popemu {
struct ComputeSetData;
}

namespace poplar {

// Names a set of vertices that run in parallel. Vertices may be added after
// the set was put into a program.
class ComputeSet {
public:
  ComputeSet() = default;
  explicit ComputeSet(std::shared_ptr<popemu::ComputeSetData> data)
      : data_(std::move(data)) {}
  const std::shared_ptr<popemu::ComputeSetData> &data() const { return data_; }

private:
  std::shared_ptr<popemu::ComputeSetData> data_;
};

} // namespace poplar
