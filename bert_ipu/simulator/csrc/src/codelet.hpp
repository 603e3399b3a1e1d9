// Vertices: compiled from the user's source, connected to tensors, run.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <popemu/vertex_abi.hpp>

#include "core.hpp"

namespace popemu {

struct ToolConfig {
  std::string compiler = "g++";
  std::string include; // of poplar/Vertex.hpp
  std::string cache;   // folder for compiled codelets
};
ToolConfig &toolConfig();

// Compile, or find compiled, and load; the result names the loaded file.
std::string loadCodelets(const std::string &path, const std::string &flags);
std::string loadCodeletText(const std::string &text, const std::string &flags);

// `codelets` are the files the graph knows; throws with the nearest names.
const VertexDescriptor &findVertexType(const std::vector<std::string> &codelets,
                                       const std::string &name);

struct VertexInstance {
  explicit VertexInstance(const VertexDescriptor &type);

  void connect(const std::string &field, const poplar::Tensor &tensor);
  void connect(const std::string &field,
               const std::vector<poplar::Tensor> &tensors);
  void setInitialValue(const std::string &field,
                       const std::vector<double> &values, bool isArray);
  void bind(const std::string &computeSet);
  void run();

  struct Field {
    const FieldDescriptor *descriptor;
    std::vector<Operand> operands;
    std::vector<char> state;
    std::size_t stateCount = 0;
    std::vector<Span> spans;
    std::vector<char> arena;
  };

  const VertexDescriptor &type;
  std::string title; // with its compute set, known once bound
  std::map<std::string, Field> fields;
  int tile = -1;
  std::uint64_t estimatedCycles = 0;

private:
  Field &field(const std::string &name);
  std::vector<std::max_align_t> memory_;
};

struct ComputeSetData {
  std::string name;
  std::vector<std::shared_ptr<VertexInstance>> vertices;

  void bind();
  void run();
  Cost cost() const;
  void variables(std::vector<Variable *> &reads,
                 std::vector<Variable *> &writes) const;

private:
  void refuseRaces() const;
  bool bound_ = false;
};

} // namespace popemu
