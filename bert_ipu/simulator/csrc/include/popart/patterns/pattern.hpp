#pragma once

#include <memory>
#include <string>
#include <vector>

namespace popart {

class Op;
class Tensor;
struct OperatorIdentifier;

class Pattern {
public:
  virtual ~Pattern() = default;
  const std::string &getPatternName() const;

protected:
  std::string getReplacementOpName(Op *op, const std::string name) const;
  void transferBaseProperties(const Op *from, Op *to) const;
};

// Rewrites the graph around ops it matches, before aliasing is considered.
class PreAliasPattern : public Pattern {
public:
  virtual std::vector<const Tensor *> touches(Op *op) const = 0;
  virtual bool matches(Op *op) const = 0;
  // True if the graph changed.
  virtual bool apply(Op *op) const = 0;
  bool touchesAnchored(Op *op) const;
  Op *makeReplacementOpInIr(const OperatorIdentifier &opid, Op *oldOp,
                            const std::string name = "") const;

protected:
  std::unique_ptr<Op> makeReplacementOp(const OperatorIdentifier &opid,
                                        Op *oldOp,
                                        const std::string name = "") const;
};

} // namespace popart
