// Dropout removal: in inference, and on request in the backward pass of
// attention.
#include <memory>
#include <queue>
#include <vector>

#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/logging.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/op/dropout.hpp>
#include <popart/op/identity.hpp>
#include <popart/op/matmul.hpp>
#include <popart/op/softmax.hpp>
#include <popart/operators.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/tensor.hpp>
#include <popart/tensorindex.hpp>
#include <popart/tensors.hpp>

namespace {

// Puts an identity in the place of an op of one data input and one output.
void replaceByIdentity(const popart::PreAliasPattern &pattern, popart::Op *op) {
  popart::Op *identity = pattern.makeReplacementOpInIr(
      popart::Onnx::Operators::Identity_1, op, "");
  const popart::TensorId in = op->inId(0);
  const popart::TensorId out = op->outId(0);
  op->disconnectAllInputs();
  op->disconnectAllOutputs();
  op->getGraph().eraseOp(op->id);
  identity->connectInTensor(popart::IdentityOp::getInIndex(), in);
  identity->connectOutTensor(popart::IdentityOp::getOutIndex(), out);
  identity->setup();
}

// Dropout does nothing in inference, or at ratio 0: an identity is cheaper, and
// needs no seed.
class RemoveInferenceDropout : public popart::PreAliasPattern {
public:
  bool matches(popart::Op *op) const override {
    return op->isConvertibleTo<popart::DropoutOp>() &&
           !op->isConvertibleTo<popart::DropoutGradOp>() &&
           op->canBeReplacedByIdentity();
  }

  std::vector<const popart::Tensor *> touches(popart::Op *) const override {
    return {}; // both tensors keep their ids and values
  }

  bool apply(popart::Op *op) const override {
    popart::logging::pattern::debug("RemoveInferenceDropout: {}",
                                    op->debugName());
    replaceByIdentity(*this, op);
    return true;
  }
};

// Passes the gradient of attention dropout through unchanged: without mask and
// without the scale 1/(1-p). The gradient is then deliberately biased; the
// forward pass and all other dropouts stay as they are.
class DisableAttnDropoutBwd : public popart::PreAliasPattern {
public:
  bool matches(popart::Op *op) const override {
    const auto *dropout = dynamic_cast<popart::DropoutGradOp *>(op);
    return dropout && dropout->getRatio() != 0.0f &&
           comesFromMatMul(
               op->inTensor(popart::DropoutGradOp::getGradInIndex())) &&
           reachesSoftmaxGrad(
               op->outTensor(popart::DropoutGradOp::getOutIndex()));
  }

  std::vector<const popart::Tensor *> touches(popart::Op *) const override {
    return {};
  }

  bool apply(popart::Op *op) const override {
    popart::logging::pattern::debug("DisableAttnDropoutBwd: {}",
                                    op->debugName());
    replaceByIdentity(*this, op);
    return true;
  }

private:
  // The product with the values is at most one op away; the product may have
  // become a plain MatMul by PopART's own patterns.
  static bool comesFromMatMul(popart::Tensor *gradient) {
    constexpr int levels = 2;
    for (int level = 0; level < levels && gradient->hasProducer(); ++level) {
      popart::Op *op = gradient->getProducer();
      if (op->isConvertibleTo<popart::MatMulOp>() ||
          op->isConvertibleTo<popart::MatMulLhsGradOp>())
        return true;
      if (op->input->n() != 1)
        return false;
      gradient = op->input->tensors().front();
    }
    return false;
  }

  static bool reachesSoftmaxGrad(popart::Tensor *gradient) {
    std::queue<popart::Tensor *> open;
    open.push(gradient);
    while (!open.empty()) {
      popart::Tensor *tensor = open.front();
      open.pop();
      for (popart::Op *consumer : tensor->consumers.getOps()) {
        if (consumer->isConvertibleTo<popart::SoftmaxGradOp>())
          return true;
        if (consumer->isConvertibleTo<popart::DropoutGradOp>() ||
            consumer->opid.type == "Detach")
          open.push(consumer->outTensor(0));
      }
    }
    return false;
  }
};

popart::PatternCreator<RemoveInferenceDropout>
    removeInferenceDropoutCreator("RemoveInferenceDropout", true);
popart::PatternCreator<DisableAttnDropoutBwd>
    disableAttnDropoutBwdCreator("DisableAttnDropoutBwd", false);

} // namespace
