#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>

#include <popart/attributes.hpp>
#include <popart/basicoptionals.hpp>
#include <popart/datatype.hpp>
#include <popart/error.hpp>
#include <popart/names.hpp>
#include <popart/operatoridentifier.hpp>
#include <popart/region.hpp>
#include <popart/scope.hpp>
#include <popart/tensorindex.hpp>
#include <popart/tensorinfo.hpp>
#include <popart/tensorlocation.hpp>
#include <popart/vertex.hpp>
#include <poprithms/memory/inplace/proposal.hpp>

namespace popart {

class AliasModel;
class Graph;
class Ir;
class OpSerialiserBase;
class Pattern;

enum class RecomputeType { Undefined = 0, Checkpoint, Recompute, Recomputed };

enum class ExecutionContext {
  Normal = 0,
  AccumulateOuterFragment,
  WeightsFromHostFragment,
  WeightsToHostFragment,
  OptimizerFromHostFragment,
  Subgraph
};

enum class ReductionType { Sum = 0, Mean, NoReduction, N };

// The upper-case names are those of SDK 1.
enum class GradOpInType {
  In = 0,
  Out,
  GradOut,
  IN = In,
  OUT = Out,
  GRADOUT = GradOut
};

std::ostream &operator<<(std::ostream &os, const RecomputeType &type);
std::ostream &operator<<(std::ostream &os, const ExecutionContext &context);
std::ostream &operator<<(std::ostream &os, const GradOpInType &type);

// Input `iGrad` of a gradient op is input, output or output gradient
// `iNonGrad` of its forward op.
class GradInOutMapper {
public:
  GradInOutMapper(InIndex iGrad_, int iNonGrad_, GradOpInType type_)
      : iGrad(iGrad_), iNonGrad(iNonGrad_), type(type_) {}
  InIndex iGrad;
  int iNonGrad;
  GradOpInType type;
  bool operator==(const GradInOutMapper &rhs) const {
    return iGrad == rhs.iGrad && iNonGrad == rhs.iNonGrad && type == rhs.type;
  }
};

// A node of the graph. It belongs to the graph it was moved into; its input
// and output tensors belong to that graph's Tensors.
class Op : public Vertex {
public:
  std::unique_ptr<TensorIndexMap> input;
  std::unique_ptr<TensorIndexMap> output;
  OpId id{-1};
  OperatorIdentifier opid;
  bool pruneable = true;

  struct Settings {
    Settings(Graph &graph_, const std::string &name_)
        : graph(graph_), name(name_) {}
    Settings(Graph &graph_, const std::string &name_, const Scope &scope_)
        : graph(graph_), name(name_), scope(scope_) {}
    Settings(const Settings &) = default;
    Settings &operator=(const Settings &) = default;
    virtual ~Settings() = default;

    Settings copy(const std::string &newName) {
      Settings settings = *this;
      settings.name = newName;
      return settings;
    }
    virtual void setFromAttributes(const Attributes &attributes);
    Ir &getIr() const;

    std::reference_wrapper<Graph> graph;
    std::string name = "";
    Scope scope;
    RecomputeType recomputeType = RecomputeType::Undefined;
    nonstd::optional<TensorLocation> tensorLocation;
    std::vector<std::tuple<std::string, float>> inplacePriorityVeto;
    std::unordered_set<std::string> excludePatterns;
    OptionalVGraphId vgraphId;
    OptionalPipelineStage pipelineStage;
    OptionalExecutionPhase executionPhase;
    OptionalBatchSerializedPhase batchSerializedPhase;
    TileSet tileSet{TileSet::Compute};
    ExecutionContext executionContext{ExecutionContext::Normal};
    std::map<InIndex, InIndex> inferTensorMappingToFrom;
    double schedulePriority{0.0};
    std::map<std::string, std::string> extraOutlineAttributes;
    uint64_t debugInfoId{0};
    bool optimizerOp{false};
    bool gradientClippingOp{false};
  };
  Settings settings;

  Op(const OperatorIdentifier &opid_, const Op::Settings &settings_);
  Op(const Op &other);
  Op &operator=(const Op &) = delete;
  ~Op() override;

  Settings &getSettings() { return settings; }
  const Settings &getSettings() const { return settings; }

  Ir &getIr();
  const Ir &getIr() const;
  Graph &getGraph() { return settings.graph.get(); }
  const Graph &getGraph() const { return settings.graph.get(); }
  const Scope &getScope() const { return settings.scope; }
  void setScope(const Scope &scope) { settings.scope = scope; }
  const std::string &getName() const { return settings.name; }
  void setName(const std::string &name) { settings.name = name; }
  const std::string &name() const { return settings.name; }
  std::string str() const final;
  std::string debugName() const;

  const OptionalVGraphId getOptionalVGraphId() const {
    return settings.vgraphId;
  }
  VGraphId getVirtualGraphId() const { return settings.vgraphId.value(); }
  void setVirtualGraphId(const OptionalVGraphId id) { settings.vgraphId = id; }
  bool hasVirtualGraphId() const { return settings.vgraphId.has_value(); }
  void setPipelineStage(OptionalPipelineStage stage) {
    settings.pipelineStage = stage;
  }
  bool hasPipelineStage() const { return settings.pipelineStage.has_value(); }
  PipelineStage getPipelineStage() const {
    return settings.pipelineStage.value();
  }
  OptionalPipelineStage getOptionalPipelineStage() const {
    return settings.pipelineStage;
  }
  void setExecutionPhase(const OptionalExecutionPhase phase) {
    settings.executionPhase = phase;
  }
  bool hasExecutionPhase() const { return settings.executionPhase.has_value(); }
  virtual ExecutionPhase getExecutionPhase() const {
    return settings.executionPhase.value();
  }
  void setBatchSerializedPhase(const OptionalBatchSerializedPhase phase) {
    settings.batchSerializedPhase = phase;
  }
  bool hasBatchSerializedPhase() const {
    return settings.batchSerializedPhase.has_value();
  }
  virtual BatchSerializedPhase getBatchSerializedPhase() const {
    return settings.batchSerializedPhase.value();
  }
  bool isExcludedFromPattern(const Pattern *pattern) const;
  void inheritPlacementAttributes(bool inheritSerializations);

  void connectInTensor(InIndex index, TensorId tensorId);
  void connectOutTensor(OutIndex index, TensorId tensorId);
  void createAndConnectOutTensor(OutIndex index, TensorId tensorId);
  void disconnectInTensor(Tensor *tensor);
  void disconnectInTensor(InIndex index, Tensor *tensor);
  void disconnectInTensor(InIndex index);
  void disconnectOutTensor(Tensor *tensor);
  void disconnectAllInputs();
  void disconnectAllOutputs();

  virtual void setup();
  virtual std::vector<std::unique_ptr<Op>> getGradOps();
  virtual const std::vector<GradInOutMapper> &gradInputInfo() const;
  virtual const std::map<int, int> &gradOutToNonGradIn() const;
  virtual int getNonGradInIndex(int gradOpOutIndex) const;
  virtual std::unique_ptr<Op> clone() const = 0;
  virtual std::vector<std::tuple<OperatorIdentifier, float>>
  inplacePriorityDefault() const {
    return {};
  }
  virtual std::unique_ptr<Op>
  getInplaceVariant(const OperatorIdentifier &) const;
  // The simulator has no use for aliases and proposals: every output has
  // memory of its own.
  virtual void growAliasModel(AliasModel &) const {}
  void growAliasModelMulti(AliasModel &) const {}
  virtual poprithms::memory::inplace::Proposal
  mapInplaceProposal(const AliasModel &, OperatorIdentifier) const;
  virtual poprithms::memory::inplace::Proposal
  mapInplaceProposalGate0(const AliasModel &, OperatorIdentifier) const;
  virtual ReplicatedTensorShardingIndices
  getReplicatedTensorShardingIndices() const {
    return {};
  }
  virtual std::set<InIndex> optionalInputs() const { return {}; }

  virtual view::Regions modifies(InIndex) const;
  virtual view::Regions uses(InIndex) const;
  virtual view::Regions aliases(InIndex, OutIndex) const;
  virtual view::RegMap fwdRegMap(InIndex, OutIndex) const;
  virtual view::RegMap bwdRegMap(InIndex, OutIndex) const;
  bool modifiesIndex(InIndex index) const;

  template <typename T> bool isConvertibleTo() const {
    return dynamic_cast<const T *>(this) != nullptr;
  }
  virtual bool isLossOp() const { return false; }
  virtual bool isIpuCopyOp() const { return false; }
  virtual bool isOptimizerOp() const { return settings.optimizerOp; }
  virtual bool isNorm() const { return false; }
  virtual bool canBeReplacedByIdentity() const { return false; }
  virtual bool requiresRandomSeed() const { return false; }
  virtual InIndex getSeedInIndex() const { return -1; }
  virtual bool isOutlineable() const { return true; }
  virtual bool hasSideEffect() const { return false; }
  virtual bool canRecompute() const { return true; }
  virtual bool canShard() const { return false; }
  virtual int getInBatchAxis(InIndex) const { return 0; }
  virtual int getOutBatchAxis(OutIndex) const { return 0; }

  bool hasInput(InIndex index) const;
  bool hasOutput(OutIndex index) const;
  Tensor *inTensor(InIndex index);
  const Tensor *inTensor(InIndex index) const;
  Tensor *outTensor(OutIndex index);
  const Tensor *outTensor(OutIndex index) const;
  TensorId inId(InIndex index) const;
  TensorId outId(OutIndex index) const;
  TensorInfo &inInfo(InIndex index);
  const TensorInfo &inInfo(InIndex index) const;
  TensorInfo &outInfo(OutIndex index);
  const TensorInfo &outInfo(OutIndex index) const;
  const Shape &inShape(InIndex index) const;
  const Shape &outShape(OutIndex index) const;
  size_t inTensorCount() const;
  size_t outTensorCount() const;
  Rank inRank(InIndex index) const;
  Rank outRank(OutIndex index) const;
  InIndex inIndex(Tensor *tensor) const;
  OutIndex outIndex(Tensor *tensor) const;

  virtual void appendAttributes(OpSerialiserBase &os) const;
  virtual void appendOutlineAttributes(OpSerialiserBase &os) const;
  virtual void appendMore(OpSerialiserBase &) const {}

  Shape prettyNpOut(const Shape &s0, const Shape &s1) const;
  TensorInfo prettyNpOut(const TensorInfo &i0, const TensorInfo &i1,
                         bool checkDataType = true) const;

  virtual float getSubgraphValue() const = 0;
  float getHighSubgraphValue() const { return 1000.0f; }
  float getLowSubgraphValue() const { return 0.1f; }

  bool isParentOf(const Op *other) const;
  bool isChildOf(const Op *other) const { return other->isParentOf(this); }
  Op *getPrecedingOp(InIndex index);
  Op *getFollowingOp(OutIndex index = 0);
  std::vector<Op *> getFollowingOps(OutIndex index = 0);
  template <typename T> T *getPrecedingOp(InIndex index) {
    if (T *op = dynamic_cast<T *>(getPrecedingOp(index)))
      return op;
    throw internal_error("the op before {} is of another class than asked for",
                         debugName());
  }
};

} // namespace popart
