#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <popart/attributes.hpp>
#include <popart/datatype.hpp>
#include <popart/error.hpp>
#include <popart/half.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/operatoridentifier.hpp>
#include <popart/tensordata.hpp>
#include <popart/tensorinfo.hpp>
#include <popemu/api_version.hpp>

namespace popart {

// Documents inputs, outputs and attributes; nothing is checked against it.
class OpDefinition {
public:
  struct Input {
    Input(std::string name_, std::vector<DataType> types,
          bool constant_ = false)
        : name(std::move(name_)), supportedTensors(std::move(types)),
          constant(constant_) {}
    std::string name;
    std::vector<DataType> supportedTensors;
    bool constant;
  };
  struct Output {
    Output(std::string name_, std::vector<DataType> types)
        : name(std::move(name_)), supportedTensors(std::move(types)) {}
    std::string name;
    std::vector<DataType> supportedTensors;
  };
  struct Attribute {
    Attribute(std::string regex) : supportedValuesRegex(std::move(regex)) {}
    std::string supportedValuesRegex;
  };

  using DataTypes = std::vector<DataType>;
  using Inputs = std::vector<Input>;
  using Outputs = std::vector<Output>;
  using Attributes = std::map<std::string, Attribute>;

  OpDefinition() = default;
  OpDefinition(Inputs i, Outputs o, Attributes a)
      : inputs(std::move(i)), outputs(std::move(o)), attributes(std::move(a)) {}

  Inputs inputs;
  Outputs outputs;
  Attributes attributes;
};

using OpDefinitions =
    std::map<OperatorIdentifier, OpDefinition, OperatorIdentifierLess>;

// What a factory is given.
class OpCreatorInfo {
public:
  OpCreatorInfo(const OperatorIdentifier &opid_, const Op::Settings &settings_,
                const Attributes &attributes_,
                const std::vector<TensorId> &inputIds,
                const std::vector<TensorId> &outputIds)
      : opid(opid_), settings(settings_), attributes(attributes_),
        inputIds_(inputIds), outputIds_(outputIds) {}

  const OperatorIdentifier &opid;
  const Op::Settings &settings;
  const Attributes &attributes;

  bool hasInputIds() const { return !inputIds_.empty(); }
  bool hasOutputIds() const { return !outputIds_.empty(); }
  const std::vector<TensorId> &getInputIds() const { return inputIds_; }
  const std::vector<TensorId> &getOutputIds() const { return outputIds_; }
  Tensor *getInputTensor(int index) const;
  TensorInfo &getInputTensorInfo(int index) const;
  TensorData *getInputTensorData(int index) const;
  bool hasInputTensor(int index) const;
  std::string debugName() const;

private:
  const std::vector<TensorId> &inputIds_;
  const std::vector<TensorId> &outputIds_;
};

// All ops that can be created by name. The first registration of a name wins.
class OpManager {
public:
  using OpFactoryFunc =
      std::function<std::unique_ptr<Op>(const OpCreatorInfo &)>;

  static void registerOp(const OperatorIdentifier &opid, bool isPublic,
                         OpFactoryFunc factory);
  // Null when there is no such op; the highest version up to opid's counts.
  static std::unique_ptr<Op>
  createOp(const OperatorIdentifier &opid, Graph &graph,
           const std::string &name = "", const Attributes &attributes = {},
           const std::vector<TensorId> &inputIds = {});
  static std::vector<OperatorIdentifier> registeredOps();
};

namespace detail {

template <typename OP>
std::unique_ptr<Op> createDefault(const OpCreatorInfo &info) {
  return std::unique_ptr<Op>(new OP(info.opid, info.settings));
}

} // namespace detail

// Registers an op when it is constructed, as a static object usually.
template <typename OP> class OpCreator {
public:
  // The factory of SDK 1, which is given three arguments.
  using OldFactory = std::function<std::unique_ptr<Op>(
      const OperatorIdentifier &, const Op::Settings &, const Attributes &)>;

  OpCreator(const OpDefinitions &definitions, bool isPublic = true) {
    registerAll(definitions, isPublic, &detail::createDefault<OP>);
  }
  OpCreator(const OpDefinitions &definitions, OpManager::OpFactoryFunc factory,
            bool isPublic = true) {
    registerAll(definitions, isPublic, factory);
  }
  OpCreator(const OpDefinitions &definitions, OldFactory factory,
            bool isPublic = true) {
    registerAll(definitions, isPublic, [factory](const OpCreatorInfo &info) {
      return factory(info.opid, info.settings, info.attributes);
    });
  }

private:
  static void registerAll(const OpDefinitions &definitions, bool isPublic,
                          const OpManager::OpFactoryFunc &factory) {
    for (const auto &definition : definitions)
      OpManager::registerOp(definition.first, isPublic, factory);
  }
};

} // namespace popart
