#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace popart {

class Op;
class Tensor;

using TensorId = std::string;
using OpName = std::string;
using OpDomain = std::string;
using OpType = std::string;
using OpVersion = unsigned;
using OpId = int;
using InIndex = int;
using OutIndex = int;
using SubgraphIndex = int;
using Rank = int;
// Inputs whose shards belong together, with the outputs that are then sharded.
using ReplicatedTensorShardingIndices =
    std::set<std::pair<std::set<InIndex>, std::set<OutIndex>>>;
using Shape = std::vector<int64_t>;
using VGraphId = int64_t;
using PipelineStage = int64_t;
using ExecutionPhase = int64_t;
using BatchSerializedPhase = int64_t;
using RandomReferenceId = int64_t;
using ReturnPeriod = int;
using TaskId = std::string;

// Orders by id, so that maps of pointers have the same order in every run.
struct POpCmp {
  bool operator()(const Op *a, const Op *b) const;
};
struct PTensorCmp {
  bool operator()(const Tensor *a, const Tensor *b) const;
};

using OpsBeforeKey = std::map<Op *, std::vector<Op *>, POpCmp>;

} // namespace popart
