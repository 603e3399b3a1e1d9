// Identifiers of the ops of ONNX and PopART that patterns refer to.
#pragma once

#include <popart/operatoridentifier.hpp>

namespace popart {
namespace Onnx {
namespace Operators {

const OperatorIdentifier Add_6(Domain::ai_onnx, "Add", 6, 2, 1);
const OperatorIdentifier Add_7(Domain::ai_onnx, "Add", 7, 2, 1);
const OperatorIdentifier Cast_9(Domain::ai_onnx, "Cast", 9, 1, 1);
const OperatorIdentifier Concat_4(Domain::ai_onnx, "Concat", 4, {1, -1}, 1);
const OperatorIdentifier Div_7(Domain::ai_onnx, "Div", 7, 2, 1);
const OperatorIdentifier Dropout_7(Domain::ai_onnx, "Dropout", 7, 1, 2);
const OperatorIdentifier Dropout_10(Domain::ai_onnx, "Dropout", 10, 1, 2);
const OperatorIdentifier Gather_1(Domain::ai_onnx, "Gather", 1, 2, 1);
const OperatorIdentifier Identity_1(Domain::ai_onnx, "Identity", 1, 1, 1);
const OperatorIdentifier MatMul_1(Domain::ai_onnx, "MatMul", 1, 2, 1);
const OperatorIdentifier MatMul_9(Domain::ai_onnx, "MatMul", 9, 2, 1);
const OperatorIdentifier Mul_6(Domain::ai_onnx, "Mul", 6, 2, 1);
const OperatorIdentifier Mul_7(Domain::ai_onnx, "Mul", 7, 2, 1);
const OperatorIdentifier Neg_6(Domain::ai_onnx, "Neg", 6, 1, 1);
const OperatorIdentifier ReduceSum_1(Domain::ai_onnx, "ReduceSum", 1, 1, 1);
const OperatorIdentifier Relu_6(Domain::ai_onnx, "Relu", 6, 1, 1);
const OperatorIdentifier Reshape_5(Domain::ai_onnx, "Reshape", 5, 2, 1);
const OperatorIdentifier Slice_1(Domain::ai_onnx, "Slice", 1, 1, 1);
const OperatorIdentifier Softmax_1(Domain::ai_onnx, "Softmax", 1, 1, 1);
const OperatorIdentifier Softmax_11(Domain::ai_onnx, "Softmax", 11, 1, 1);
const OperatorIdentifier Sub_6(Domain::ai_onnx, "Sub", 6, 2, 1);
const OperatorIdentifier Sub_7(Domain::ai_onnx, "Sub", 7, 2, 1);
const OperatorIdentifier Sum_8(Domain::ai_onnx, "Sum", 8, {1, -1}, 1);
const OperatorIdentifier Transpose_1(Domain::ai_onnx, "Transpose", 1, 1, 1);

} // namespace Operators

namespace GradOperators {

const OperatorIdentifier DropoutGrad(Domain::ai_graphcore, "DropoutGrad", 1);
const OperatorIdentifier GatherGrad(Domain::ai_graphcore, "GatherGrad", 1);
const OperatorIdentifier IdentityGrad(Domain::ai_graphcore, "IdentityGrad", 1);
const OperatorIdentifier MatMulLhsGrad(Domain::ai_graphcore, "MatMulLhsGrad",
                                       1);
const OperatorIdentifier MatMulRhsGrad(Domain::ai_graphcore, "MatMulRhsGrad",
                                       1);
const OperatorIdentifier SoftmaxGrad(Domain::ai_graphcore, "SoftmaxGrad", 1);

} // namespace GradOperators

namespace CustomOperators {

const OperatorIdentifier Accumulate(Domain::ai_graphcore, "Accumulate", 1);
const OperatorIdentifier AdamUpdater(Domain::ai_graphcore, "AdamUpdater", 1);
const OperatorIdentifier AdamVarUpdate(Domain::ai_graphcore, "AdamVarUpdate",
                                       1);
const OperatorIdentifier Detach_1(Domain::ai_graphcore, "Detach", 1, 1, 1);
const OperatorIdentifier Gelu_1(Domain::ai_graphcore, "Gelu", 1, 1, 1);
const OperatorIdentifier LambSquare(Domain::ai_graphcore, "LambSquare", 1);
const OperatorIdentifier SGD0VarUpdate(Domain::ai_graphcore, "SGD0VarUpdate",
                                       1);
const OperatorIdentifier SGD1AcclUpdate(Domain::ai_graphcore, "SGD1AcclUpdate",
                                        1);
const OperatorIdentifier SGD1Accumulate(Domain::ai_graphcore, "SGD1Accumulate",
                                        1);
const OperatorIdentifier SGD1VarUpdate(Domain::ai_graphcore, "SGD1VarUpdate",
                                       1);
const OperatorIdentifier SparseAccumulate(Domain::ai_graphcore,
                                          "SparseAccumulate", 1);

} // namespace CustomOperators
} // namespace Onnx
} // namespace popart
