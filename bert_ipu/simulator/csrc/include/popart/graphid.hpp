#pragma once

#include <string>

namespace popart {

class GraphId {
public:
  GraphId(const std::string &id) : id_(id) {}
  static const GraphId &root();
  const std::string &str() const { return id_; }
  bool operator==(const GraphId &other) const { return id_ == other.id_; }
  bool operator<(const GraphId &other) const { return id_ < other.id_; }

private:
  std::string id_;
};

} // namespace popart
