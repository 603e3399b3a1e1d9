// How those of PopART's ops run that a custom op may name as its gradient.
#include <popart/op/identity.hpp>
#include <popart/operators.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>

namespace {

class IdentityGradOpx : public popart::popx::Opx {
public:
  IdentityGradOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : Opx(op, devicex) {}
  void grow(poplar::program::Sequence &prog) const override {
    setOutTensor(0, cloneNcopy(prog, getInTensor(0)));
  }
};

popart::popx::OpxCreator<IdentityGradOpx>
    identityGradOpx(popart::Onnx::GradOperators::IdentityGrad);

} // namespace
