#pragma once

#include <cstddef>
#include <memory>

namespace popemu {
struct VertexInstance;
}

namespace poplar {

class Graph;

// Names one vertex of a compute set.
class VertexRef {
public:
  VertexRef() = default;
  explicit VertexRef(std::shared_ptr<popemu::VertexInstance> vertex)
      : vertex_(std::move(vertex)) {}
  const std::shared_ptr<popemu::VertexInstance> &instance() const {
    return vertex_;
  }

private:
  std::shared_ptr<popemu::VertexInstance> vertex_;
};

} // namespace poplar
