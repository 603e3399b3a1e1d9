#pragma once

#include <iosfwd>
#include <map>
#include <set>
#include <vector>

#include <popart/names.hpp>
#include <popart/op.hpp>

namespace popart {

class TopoOp {
public:
  TopoOp(Op *op_, bool tied_ = false) : op(op_), tied(tied_) {}
  Op *op;
  bool tied;
  bool operator<(const TopoOp &rhs) const { return op->id < rhs.op->id; }
};

// Which op must run before which; tied ones run with nothing in between.
class TopoCons {
public:
  void insert(Op *before, Op *after, bool tied = false);
  void remove(Op *op);
  void remove(Op *before, Op *after);
  void transfer(Op *from, Op *to, bool removeOld = true);
  bool hasConstraint(Op *op);
  bool contains(Op *before, Op *after) const;
  std::vector<Op *> getAfters(Op *before) const;
  std::vector<Op *> getBefores(Op *after) const;
  std::vector<Op *> getTiedAfters(Op *before) const;
  std::vector<Op *> getTiedBefores(Op *after) const;
  const std::map<Op *, std::set<TopoOp>, POpCmp> &getValsAfter() const {
    return afters_;
  }
  const std::map<Op *, std::set<TopoOp>, POpCmp> &getValsBefore() const {
    return befores_;
  }

private:
  std::map<Op *, std::set<TopoOp>, POpCmp> afters_;
  std::map<Op *, std::set<TopoOp>, POpCmp> befores_;
};

} // namespace popart
