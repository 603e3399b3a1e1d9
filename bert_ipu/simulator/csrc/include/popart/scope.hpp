#pragma once

#include <string>
#include <vector>

namespace popart {

// The path of subgraphs a name lives in.
class Scope {
public:
  bool empty() const { return names_.empty(); }
  Scope operator/(const std::string &name) const {
    Scope scope = *this;
    scope.names_.push_back(name);
    return scope;
  }
  bool operator==(const Scope &other) const { return names_ == other.names_; }

private:
  std::vector<std::string> names_;
};

} // namespace popart
