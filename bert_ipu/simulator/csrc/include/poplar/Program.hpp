#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include <poplar/ComputeSet.hpp>
#include <poplar/DebugContext.hpp>
#include <poplar/Tensor.hpp>

namespace popemu {
struct Step;
struct Block;
} // namespace popemu

namespace poplar {

class Graph;
class Function;

namespace program {

// A recorded program; it runs when the engine runs, not when it is built.
class Program {
public:
  Program() = default;
  explicit Program(std::shared_ptr<popemu::Step> step)
      : step_(std::move(step)) {}
  bool isEmpty() const { return step_ == nullptr; }
  // What to run: a snapshot, which later additions do not change.
  std::shared_ptr<popemu::Step> snapshot() const;

protected:
  std::shared_ptr<popemu::Step> step_;
};

class Sequence : public Program {
public:
  Sequence(const DebugContext &debugContext = {});
  Sequence(std::initializer_list<Program> programs,
           const DebugContext &debugContext = {});
  Sequence(const Sequence &other);
  Sequence &operator=(const Sequence &other);
  Sequence(Sequence &&other) = default;
  Sequence &operator=(Sequence &&other) = default;

  void add(const Program &program);
  void add(std::shared_ptr<popemu::Step> step);
};

class Execute : public Program {
public:
  explicit Execute(ComputeSet cs, const DebugContext &debugContext = {});
};

class Copy : public Program {
public:
  Copy(Tensor source, Tensor destination, bool dontOutline = false,
       const DebugContext &debugContext = {});
};

class Repeat : public Program {
public:
  Repeat(unsigned count, const Program &body,
         const DebugContext &debugContext = {});
};

class RepeatWhileTrue : public Program {
public:
  RepeatWhileTrue(const Program &condition, const Tensor &predicate,
                  const Program &body, const DebugContext &debugContext = {});
};

class RepeatWhileFalse : public Program {
public:
  RepeatWhileFalse(const Program &condition, const Tensor &predicate,
                   const Program &body, const DebugContext &debugContext = {});
};

class If : public Program {
public:
  If(const Tensor &predicate, const Program &trueBody, const Program &falseBody,
     const DebugContext &debugContext = {});
};

class Call : public Program {
public:
  Call(Function function, const DebugContext &debugContext = {});
};

class WriteUndef : public Program {
public:
  WriteUndef(Tensor tensor, const DebugContext &debugContext = {});
};

class PrintTensor : public Program {
public:
  PrintTensor(Tensor tensor, const DebugContext &debugContext = {});
  PrintTensor(const std::string &title, Tensor tensor,
              const DebugContext &debugContext = {});
};

class Sync : public Program {
public:
  Sync() = default;
};

} // namespace program

// A program that is kept once and called from several places.
class Function {
public:
  Function() = default;
  explicit Function(const program::Program &body) : body_(body.snapshot()) {}
  const std::shared_ptr<popemu::Step> &body() const { return body_; }

private:
  std::shared_ptr<popemu::Step> body_;
};

} // namespace poplar
