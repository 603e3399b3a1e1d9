#pragma once

#include <functional>
#include <map>
#include <string>

#include <popart/attributes.hpp>
#include <popart/names.hpp>
#include <popart/operatoridentifier.hpp>
#include <popart/tensorinfo.hpp>

namespace popart {

class ShapeInferenceContext {
public:
  ShapeInferenceContext(const std::map<int, TensorInfo> &inputs,
                        const Attributes &attributes, int outputSize)
      : inputs_(inputs), attributes_(attributes), outputSize_(outputSize) {}

  const TensorInfo &inInfo(int index) const { return inputs_.at(index); }
  const Shape &inShape(int index) const { return inInfo(index).shape(); }
  const Shape &outShape(int index) const { return outputs_.at(index).shape(); }
  DataType inType(int index) const { return inInfo(index).dataType(); }
  TensorInfo &outInfo(int index) { return outputs_[index]; }
  const std::map<int, TensorInfo> &getOutputInfos() { return outputs_; }
  const Attributes &getAttributes() const { return attributes_; }
  int getNumInputs() const { return static_cast<int>(inputs_.size()); }
  int getNumOutputs() const { return outputSize_; }
  bool hasAttribute(const std::string &key) const {
    return attributes_.hasAttribute(key);
  }
  template <typename T> T getAttribute(const std::string &key) {
    return attributes_.getAttribute<T>(key);
  }
  template <typename T>
  T getAttribute(const std::string &key, const T &defaultValue) {
    return attributes_.getAttribute<T>(key, defaultValue);
  }

private:
  std::map<int, TensorInfo> inputs_;
  std::map<int, TensorInfo> outputs_;
  Attributes attributes_;
  int outputSize_;
};

using ShapeInferenceFunction = std::function<void(ShapeInferenceContext &)>;

class ShapeInferenceFunctions {
public:
  // Throws when the op has one already.
  static void registerFunction(const OperatorIdentifier &opid,
                               ShapeInferenceFunction function);
  static bool hasFunction(const OperatorIdentifier &opid);
  static ShapeInferenceFunction getFunction(const OperatorIdentifier &opid);
};

class RegisterShapeInferenceFunction {
public:
  RegisterShapeInferenceFunction(const OperatorIdentifier &opid,
                                 ShapeInferenceFunction function) {
    ShapeInferenceFunctions::registerFunction(opid, std::move(function));
  }
};

} // namespace popart
