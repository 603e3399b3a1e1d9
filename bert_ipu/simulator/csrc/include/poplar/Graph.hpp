#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <poplar/ArrayRef.hpp>
#include <poplar/ComputeSet.hpp>
#include <poplar/DebugContext.hpp>
#include <poplar/Interval.hpp>
#include <poplar/OptionFlags.hpp>
#include <poplar/Program.hpp>
#include <poplar/Target.hpp>
#include <poplar/Tensor.hpp>
#include <poplar/VertexRef.hpp>
#include <poplar/exceptions.hpp>

namespace popemu {
struct GraphCore;
}

namespace poplar {

enum class TensorCloneMethod {
  PRESERVE_ORDER_AND_ALIASES,
  CREATE_NEW_ORDER,
  PRESERVE_ORDER_UNLESS_ALIASES,
  GATHER_AND_PRESERVE_TILE_ORDER_AND_ALIASES
};

enum class CodeletFileType {
  PreprocessedAsmSource,
  AsmSource,
  CSource,
  CppSource,
  IrSource,
  Object,
  Auto
};

// Owns variables and compute sets; programs refer to them.
class Graph {
public:
  using TileToTensorMapping = std::vector<std::vector<Interval>>;

  explicit Graph(const Target &target = Target());

  const Target &getTarget() const;

  Tensor addVariable(const Type &type, ArrayRef<std::size_t> shape,
                     const DebugContext &debugContext = {});

  // A constant holds one value everywhere, or the values of an array.
  template <typename T>
  Tensor addConstant(const Type &type, ArrayRef<std::size_t> shape,
                     ArrayRef<T> values,
                     const DebugContext &debugContext = {}) {
    std::vector<double> wide(values.begin(), values.end());
    return addConstantFromDoubles(type, shape, wide, debugContext);
  }
  template <typename T>
  Tensor addConstant(const Type &type, ArrayRef<std::size_t> shape,
                     const T *values, const DebugContext &debugContext = {}) {
    std::size_t n = 1;
    for (std::size_t extent : shape)
      n *= extent;
    return addConstant(type, shape, ArrayRef<T>(values, n), debugContext);
  }
  template <typename T, typename = typename std::enable_if<
                            std::is_arithmetic<T>::value>::type>
  Tensor addConstant(const Type &type, ArrayRef<std::size_t> shape, T value,
                     const DebugContext &debugContext = {}) {
    return addConstantFromDoubles(type, shape, {static_cast<double>(value)},
                                  debugContext);
  }
  Tensor addConstantHalf(const Type &type, ArrayRef<std::size_t> shape,
                         ArrayRef<std::uint16_t> values,
                         const DebugContext &debugContext = {});

  Tensor clone(const Type &type, const Tensor &t,
               const DebugContext &debugContext = {},
               TensorCloneMethod method =
                   TensorCloneMethod::PRESERVE_ORDER_UNLESS_ALIASES);
  Tensor clone(const Tensor &t, const DebugContext &debugContext = {},
               TensorCloneMethod method =
                   TensorCloneMethod::PRESERVE_ORDER_UNLESS_ALIASES);

  void setTileMapping(const Tensor &t, unsigned tile);
  void setTileMapping(const Tensor &t, const TileToTensorMapping &mapping);
  void setTileMapping(VertexRef vertex, unsigned tile);
  TileToTensorMapping getTileMapping(const Tensor &t,
                                     bool requireComplete = true) const;
  TileToTensorMapping getTileMapping(const Tensor &t, bool *isComplete) const;

  bool addCodelets(StringRef source,
                   CodeletFileType type = CodeletFileType::Auto,
                   StringRef compileFlags = "", StringRef targetName = "");
  void addCodelets(std::istream &source, StringRef compileFlags = "",
                   CodeletFileType type = CodeletFileType::CppSource,
                   StringRef targetName = "");

  ComputeSet addComputeSet(const DebugContext &debugContext = {});
  VertexRef addVertex(ComputeSet cs, StringRef vertexType);
  VertexRef addVertex(ComputeSet cs, StringRef vertexType,
                      ArrayRef<std::pair<std::string, Tensor>> connections);
  void connect(VertexRef vertex, StringRef field, const Tensor &tensor);
  void connect(VertexRef vertex, StringRef field, ArrayRef<Tensor> tensors);
  template <typename T>
  void setInitialValue(VertexRef vertex, StringRef field, T value) {
    setInitialValues(vertex, field, {static_cast<double>(value)}, false);
  }
  template <typename T>
  void setInitialValue(VertexRef vertex, StringRef field, ArrayRef<T> values) {
    setInitialValues(vertex, field,
                     std::vector<double>(values.begin(), values.end()), true);
  }
  template <typename T>
  void setInitialValue(VertexRef vertex, StringRef field,
                       const std::vector<T> &values) {
    setInitialValue(vertex, field, ArrayRef<T>(values));
  }
  template <typename T> void setInitialValue(const Tensor &t, T value) {
    setTensorInitialValue(t, {static_cast<double>(value)});
  }
  template <typename T>
  void setInitialValue(const Tensor &t, ArrayRef<T> values) {
    setTensorInitialValue(t, std::vector<double>(values.begin(), values.end()));
  }
  void setFieldSize(VertexRef vertex, StringRef field, std::size_t size);
  void setPerfEstimate(const VertexRef &vertex, std::uint64_t cycles,
                       std::uint64_t flops = 0);
  Function addFunction(const program::Program &program) {
    return Function(program);
  }

  std::vector<std::vector<Interval>>
  getSortedContiguousRegions(const Tensor &t, ArrayRef<Interval> regions) const;
  void reorderToSimplify(Tensor *t, ArrayRef<Tensor *> ts) const {
    (void)t;
    (void)ts;
  }

  const std::shared_ptr<popemu::GraphCore> &core() const { return core_; }

private:
  Tensor addConstantFromDoubles(const Type &type, ArrayRef<std::size_t> shape,
                                const std::vector<double> &values,
                                const DebugContext &debugContext);
  void setInitialValues(VertexRef vertex, StringRef field,
                        const std::vector<double> &values, bool isArray);
  void setTensorInitialValue(const Tensor &t,
                             const std::vector<double> &values);

  std::shared_ptr<popemu::GraphCore> core_;
};

} // namespace poplar
