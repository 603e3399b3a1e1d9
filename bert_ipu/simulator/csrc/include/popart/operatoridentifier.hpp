#pragma once

#include <iosfwd>
#include <string>

#include <popart/names.hpp>

namespace popart {

namespace Domain {
constexpr const char *ai_onnx = "ai.onnx";
constexpr const char *ai_onnx_ml = "ai.onnx.ml";
constexpr const char *ai_graphcore = "ai.graphcore";
} // namespace Domain

struct NumInputs {
  int min;
  int max;
  NumInputs() : min(0), max(0) {}
  NumInputs(int f) : min(f), max(f) {}
  NumInputs(int min_, int max_) : min(min_), max(max_) {}
};

// Domain, type and version name an op; the counts only document it.
struct OperatorIdentifier {
  OperatorIdentifier(const OpDomain &domain_, const OpType &type_,
                     OpVersion version_, NumInputs inputs = {}, int outputs = 0)
      : domain(domain_.empty() ? Domain::ai_onnx : domain_), type(type_),
        version(version_), numInputs(inputs), numOutputs(outputs) {}

  OpDomain domain;
  OpType type;
  OpVersion version;
  NumInputs numInputs;
  int numOutputs;

  bool operator==(const OperatorIdentifier &rhs) const {
    return domain == rhs.domain && type == rhs.type && version == rhs.version;
  }
  bool operator!=(const OperatorIdentifier &rhs) const {
    return !(*this == rhs);
  }
  bool operator<(const OperatorIdentifier &rhs) const {
    if (domain != rhs.domain)
      return domain < rhs.domain;
    return type != rhs.type ? type < rhs.type : version < rhs.version;
  }
};

struct OperatorIdentifierLess {
  bool operator()(const OperatorIdentifier &a,
                  const OperatorIdentifier &b) const {
    return a < b;
  }
};

std::ostream &operator<<(std::ostream &os, const OperatorIdentifier &opid);

} // namespace popart
