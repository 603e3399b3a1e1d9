// The memory and program model under the poplar headers.
//
// A Variable is storage; a View is an affine window on a Base, and a Base is
// either one whole variable or a concatenation of runs of variables. A Step is
// one recorded action. Views and steps are immutable once made; variables get
// their addresses from the Engine just before a run. One engine runs at a
// time; nothing here locks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>

namespace popemu {

using Half = _Float16;

std::size_t sizeOf(poplar::Type type);
bool isFloating(poplar::Type type);

struct Variable {
  poplar::Type type;
  std::size_t size = 0;
  std::string name;
  bool isConstant = false;
  std::vector<char> initial; // constants, and variables with initial values
  std::vector<poplar::Interval> mapped;
  std::vector<unsigned> mappedTile;
  char *data = nullptr; // set by the engine

  std::size_t bytes() const { return size * sizeOf(type); }
};

// `count` elements of a variable, `step` apart.
struct Run {
  Variable *variable;
  std::int64_t start;
  std::int64_t step;
  std::size_t count;
};

struct Base {
  Variable *variable = nullptr;    // the whole variable, or
  std::vector<Run> runs;           // pieces one after another,
  std::vector<std::size_t> begins; // each beginning at this index
};

struct View {
  GraphCore *graph;
  poplar::Type type;
  std::vector<std::size_t> shape;
  std::shared_ptr<const Base> base;
  std::int64_t offset = 0;
  std::vector<std::int64_t> strides;

  std::size_t size() const;
};

using SharedView = std::shared_ptr<const View>;

// The elements of a view in row-major order, as few runs as possible.
std::vector<Run> runsOf(const View &view);
std::string shapeText(const std::vector<std::size_t> &shape);

struct Cost {
  std::uint64_t cycles = 0;
  std::uint64_t bytes = 0;
};

// One recorded action.
struct Step {
  virtual ~Step() = default;
  virtual void run() = 0;
  // Called once before the first run: resolves what was still open while the
  // program was being built, such as the vertices of a compute set.
  virtual void prepare() {}
  virtual void visit(const std::function<void(Step &)> &visitor) {
    visitor(*this);
  }
  bool runsVertices = false; // code of the user, which may write anywhere
  std::string name;
  Cost cost;
  std::vector<Variable *> reads;
  std::vector<Variable *> writes;
};

struct Block : Step {
  std::vector<std::shared_ptr<Step>> steps;
  void run() override {
    for (auto &step : steps)
      step->run();
  }
  void visit(const std::function<void(Step &)> &visitor) override {
    for (auto &step : steps)
      step->visit(visitor);
  }
};

// A tensor as a step sees it: a plain array, gathered from and scattered to
// the variables where the view is not contiguous.
class Operand {
public:
  explicit Operand(const poplar::Tensor &tensor);

  poplar::Type type() const { return type_; }
  std::size_t size() const { return size_; }
  const std::vector<std::size_t> &shape() const { return shape_; }
  bool isContiguous() const { return contiguous_; }
  // Every element is the same one, as in a broadcast scalar.
  bool isUniform() const { return uniform_; }
  const std::vector<Run> &runs() const { return runs_; }
  std::vector<Variable *> variables() const;

  const char *read();
  // Where to write; `commit` makes it visible.
  char *beginWrite();
  void commit();
  template <typename T> const T *read() {
    return reinterpret_cast<const T *>(read());
  }

private:
  poplar::Type type_;
  std::vector<std::size_t> shape_;
  std::size_t size_;
  std::vector<Run> runs_;
  bool contiguous_;
  bool uniform_;
  std::vector<char> scratch_;
};

struct GraphCore {
  poplar::Target target;
  std::vector<std::unique_ptr<Variable>> variables;
  std::vector<std::shared_ptr<ComputeSetData>> computeSets;
  std::vector<std::string> codelets; // keys of loaded codelet files
  std::uint64_t seed = 0;            // of this run, for unseeded generators

  Variable *addVariable(poplar::Type type, std::size_t size, std::string name);
};

poplar::Tensor tensorOf(GraphCore &graph, Variable *variable,
                        std::vector<std::size_t> shape);

// Adds a step whose reads, writes and cost are filled in here.
void record(poplar::program::Sequence &prog, std::shared_ptr<Step> step,
            const poplar::DebugContext &context,
            const std::vector<poplar::Tensor> &reads,
            const std::vector<poplar::Tensor> &writes, Cost cost);

// A new tensor, mapped linearly over the tiles.
poplar::Tensor addMapped(poplar::Graph &graph, poplar::Type type,
                         const std::vector<std::size_t> &shape,
                         const poplar::DebugContext &context);

void requireMapped(const Variable &variable);

// Blocks of elements between device types and the two types we compute in.
void toFloat(const char *source, poplar::Type type, float *out, std::size_t n);
void fromFloat(const float *values, poplar::Type type, char *out,
               std::size_t n);
void toInt(const char *source, poplar::Type type, std::int64_t *out,
           std::size_t n);
void fromInt(const std::int64_t *values, poplar::Type type, char *out,
             std::size_t n);
void roundToHalf(float *values, std::size_t n);
void storeDouble(double value, poplar::Type type, char *out);
double loadDouble(const char *source, poplar::Type type);

} // namespace popemu
