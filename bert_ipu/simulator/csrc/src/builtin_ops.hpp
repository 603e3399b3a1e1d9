// Ops of PopART itself, as patterns see them. The simulator executes them; the
// classes here only carry types, attributes and shapes.
#pragma once

#include <memory>

#include <popart/op.hpp>

namespace popemu {

// Null when `type` is none of PopART's ops that have a class here. Attributes
// have ONNX's names, or those of the constructor arguments.
std::unique_ptr<popart::Op>
createBuiltinOp(const popart::OperatorIdentifier &opid,
                const popart::Attributes &attributes,
                const popart::Op::Settings &settings);

// Stands for any op that has no class; its outputs must be given.
std::unique_ptr<popart::Op>
createGenericOp(const popart::OperatorIdentifier &opid,
                const popart::Op::Settings &settings);

} // namespace popemu
