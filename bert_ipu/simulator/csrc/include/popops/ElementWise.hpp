// Elementwise arithmetic. Inputs broadcast as in NumPy; a half result is
// rounded after every operator.
#pragma once

#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>
#include <popops/Expr.hpp>
#include <popops/ExprOp.hpp>

namespace popops {

poplar::Tensor map(poplar::Graph &graph, const expr::Expr &expr,
                   const std::vector<poplar::Tensor> &ts,
                   poplar::program::Sequence &prog,
                   const poplar::DebugContext &debugContext = {},
                   const poplar::OptionFlags &options = {});
// The result replaces the first input.
void mapInPlace(poplar::Graph &graph, const expr::Expr &expr,
                const std::vector<poplar::Tensor> &ts,
                poplar::program::Sequence &prog,
                const poplar::DebugContext &debugContext = {},
                const poplar::OptionFlags &options = {});
void mapWithOutput(poplar::Graph &graph, const expr::Expr &expr,
                   const std::vector<poplar::Tensor> &ts,
                   const poplar::Tensor &out, poplar::program::Sequence &prog,
                   const poplar::DebugContext &debugContext = {},
                   const poplar::OptionFlags &options = {});

inline poplar::Tensor map(poplar::Graph &graph, expr::UnaryOpType op,
                          const poplar::Tensor &t,
                          poplar::program::Sequence &prog,
                          const poplar::DebugContext &debugContext = {},
                          const poplar::OptionFlags &options = {}) {
  return map(graph, expr::UnaryOp(op, expr::_1), {t}, prog, debugContext,
             options);
}
inline poplar::Tensor map(poplar::Graph &graph, expr::BinaryOpType op,
                          const poplar::Tensor &a, const poplar::Tensor &b,
                          poplar::program::Sequence &prog,
                          const poplar::DebugContext &debugContext = {},
                          const poplar::OptionFlags &options = {}) {
  return map(graph, expr::BinaryOp(op, expr::_1, expr::_2), {a, b}, prog,
             debugContext, options);
}
inline poplar::Tensor map(poplar::Graph &graph, expr::TernaryOpType op,
                          const poplar::Tensor &a, const poplar::Tensor &b,
                          const poplar::Tensor &c,
                          poplar::program::Sequence &prog,
                          const poplar::DebugContext &debugContext = {},
                          const poplar::OptionFlags &options = {}) {
  return map(graph, expr::TernaryOp(op, expr::_1, expr::_2, expr::_3),
             {a, b, c}, prog, debugContext, options);
}
inline void mapInPlace(poplar::Graph &graph, expr::UnaryOpType op,
                       const poplar::Tensor &t, poplar::program::Sequence &prog,
                       const poplar::DebugContext &debugContext = {},
                       const poplar::OptionFlags &options = {}) {
  mapInPlace(graph, expr::UnaryOp(op, expr::_1), {t}, prog, debugContext,
             options);
}
inline void mapInPlace(poplar::Graph &graph, expr::BinaryOpType op,
                       const poplar::Tensor &a, const poplar::Tensor &b,
                       poplar::program::Sequence &prog,
                       const poplar::DebugContext &debugContext = {},
                       const poplar::OptionFlags &options = {}) {
  mapInPlace(graph, expr::BinaryOp(op, expr::_1, expr::_2), {a, b}, prog,
             debugContext, options);
}

#define POPEMU_UNARY(name, Type)                                               \
  inline poplar::Tensor name(poplar::Graph &graph, const poplar::Tensor &a,    \
                             poplar::program::Sequence &prog,                  \
                             const poplar::DebugContext &debugContext = {},    \
                             const poplar::OptionFlags &options = {}) {        \
    return map(graph, expr::UnaryOpType::Type, a, prog, debugContext,          \
               options);                                                       \
  }                                                                            \
  inline void name##InPlace(poplar::Graph &graph, const poplar::Tensor &a,     \
                            poplar::program::Sequence &prog,                   \
                            const poplar::DebugContext &debugContext = {},     \
                            const poplar::OptionFlags &options = {}) {         \
    mapInPlace(graph, expr::UnaryOpType::Type, a, prog, debugContext,          \
               options);                                                       \
  }                                                                            \
  inline void name##WithOutput(poplar::Graph &graph, const poplar::Tensor &a,  \
                               const poplar::Tensor &out,                      \
                               poplar::program::Sequence &prog,                \
                               const poplar::DebugContext &debugContext = {},  \
                               const poplar::OptionFlags &options = {}) {      \
    mapWithOutput(graph, expr::UnaryOp(expr::UnaryOpType::Type, expr::_1),     \
                  {a}, out, prog, debugContext, options);                      \
  }

#define POPEMU_BINARY(name, Type)                                              \
  inline poplar::Tensor name(poplar::Graph &graph, const poplar::Tensor &a,    \
                             const poplar::Tensor &b,                          \
                             poplar::program::Sequence &prog,                  \
                             const poplar::DebugContext &debugContext = {},    \
                             const poplar::OptionFlags &options = {}) {        \
    return map(graph, expr::BinaryOpType::Type, a, b, prog, debugContext,      \
               options);                                                       \
  }                                                                            \
  template <typename T>                                                        \
  inline poplar::Tensor name(poplar::Graph &graph, const poplar::Tensor &a,    \
                             const T b, poplar::program::Sequence &prog,       \
                             const poplar::DebugContext &debugContext = {},    \
                             const poplar::OptionFlags &options = {}) {        \
    return map(                                                                \
        graph,                                                                 \
        expr::BinaryOp(expr::BinaryOpType::Type, expr::_1, expr::Const(b)),    \
        {a}, prog, debugContext, options);                                     \
  }                                                                            \
  template <typename T>                                                        \
  inline poplar::Tensor name(poplar::Graph &graph, const T a,                  \
                             const poplar::Tensor &b,                          \
                             poplar::program::Sequence &prog,                  \
                             const poplar::DebugContext &debugContext = {},    \
                             const poplar::OptionFlags &options = {}) {        \
    return map(                                                                \
        graph,                                                                 \
        expr::BinaryOp(expr::BinaryOpType::Type, expr::Const(a), expr::_1),    \
        {b}, prog, debugContext, options);                                     \
  }                                                                            \
  inline void name##InPlace(poplar::Graph &graph, const poplar::Tensor &a,     \
                            const poplar::Tensor &b,                           \
                            poplar::program::Sequence &prog,                   \
                            const poplar::DebugContext &debugContext = {},     \
                            const poplar::OptionFlags &options = {}) {         \
    mapInPlace(graph, expr::BinaryOpType::Type, a, b, prog, debugContext,      \
               options);                                                       \
  }                                                                            \
  template <typename T>                                                        \
  inline void name##InPlace(poplar::Graph &graph, const poplar::Tensor &a,     \
                            const T b, poplar::program::Sequence &prog,        \
                            const poplar::DebugContext &debugContext = {},     \
                            const poplar::OptionFlags &options = {}) {         \
    mapInPlace(                                                                \
        graph,                                                                 \
        expr::BinaryOp(expr::BinaryOpType::Type, expr::_1, expr::Const(b)),    \
        {a}, prog, debugContext, options);                                     \
  }                                                                            \
  inline void name##WithOutput(                                                \
      poplar::Graph &graph, const poplar::Tensor &a, const poplar::Tensor &b,  \
      const poplar::Tensor &out, poplar::program::Sequence &prog,              \
      const poplar::DebugContext &debugContext = {},                           \
      const poplar::OptionFlags &options = {}) {                               \
    mapWithOutput(                                                             \
        graph, expr::BinaryOp(expr::BinaryOpType::Type, expr::_1, expr::_2),   \
        {a, b}, out, prog, debugContext, options);                             \
  }

#define POPEMU_TERNARY(name, Type)                                             \
  inline poplar::Tensor name(poplar::Graph &graph, const poplar::Tensor &a,    \
                             const poplar::Tensor &b, const poplar::Tensor &c, \
                             poplar::program::Sequence &prog,                  \
                             const poplar::DebugContext &debugContext = {},    \
                             const poplar::OptionFlags &options = {}) {        \
    return map(graph, expr::TernaryOpType::Type, a, b, c, prog, debugContext,  \
               options);                                                       \
  }                                                                            \
  inline void name##InPlace(poplar::Graph &graph, const poplar::Tensor &a,     \
                            const poplar::Tensor &b, const poplar::Tensor &c,  \
                            poplar::program::Sequence &prog,                   \
                            const poplar::DebugContext &debugContext = {},     \
                            const poplar::OptionFlags &options = {}) {         \
    mapInPlace(graph,                                                          \
               expr::TernaryOp(expr::TernaryOpType::Type, expr::_1, expr::_2,  \
                               expr::_3),                                      \
               {a, b, c}, prog, debugContext, options);                        \
  }                                                                            \
  inline void name##WithOutput(                                                \
      poplar::Graph &graph, const poplar::Tensor &a, const poplar::Tensor &b,  \
      const poplar::Tensor &c, const poplar::Tensor &out,                      \
      poplar::program::Sequence &prog,                                         \
      const poplar::DebugContext &debugContext = {},                           \
      const poplar::OptionFlags &options = {}) {                               \
    mapWithOutput(graph,                                                       \
                  expr::TernaryOp(expr::TernaryOpType::Type, expr::_1,         \
                                  expr::_2, expr::_3),                         \
                  {a, b, c}, out, prog, debugContext, options);                \
  }

POPEMU_UNARY(abs, ABSOLUTE)
POPEMU_UNARY(asin, ASIN)
POPEMU_UNARY(bitwiseNot, BITWISE_NOT)
POPEMU_UNARY(cbrt, CBRT)
POPEMU_UNARY(erf, ERF)
POPEMU_UNARY(ceil, CEIL)
POPEMU_UNARY(cos, COS)
POPEMU_UNARY(exp, EXPONENT)
POPEMU_UNARY(expm1, EXPONENT_MINUS_ONE)
POPEMU_UNARY(exp2, EXPONENT2)
POPEMU_UNARY(floor, FLOOR)
POPEMU_UNARY(geluErf, GELU_ERF)
POPEMU_UNARY(inv, INVERSE)
POPEMU_UNARY(log, LOGARITHM)
POPEMU_UNARY(log1p, LOGARITHM_ONE_PLUS)
POPEMU_UNARY(logicalNot, LOGICAL_NOT)
POPEMU_UNARY(neg, NEGATE)
POPEMU_UNARY(nearbyint, NEARBY_INT)
POPEMU_UNARY(popcount, POPCOUNT)
POPEMU_UNARY(signum, SIGNUM)
POPEMU_UNARY(sin, SIN)
POPEMU_UNARY(tan, TAN)
POPEMU_UNARY(tanh, TANH)
POPEMU_UNARY(round, ROUND)
POPEMU_UNARY(sqrt, SQRT)
POPEMU_UNARY(square, SQUARE)
POPEMU_UNARY(sigmoid, SIGMOID)
POPEMU_UNARY(rsqrt, RSQRT)
POPEMU_UNARY(isFinite, IS_FINITE)
POPEMU_BINARY(add, ADD)
POPEMU_BINARY(atan2, ATAN2)
POPEMU_BINARY(bitwiseAnd, BITWISE_AND)
POPEMU_BINARY(bitwiseOr, BITWISE_OR)
POPEMU_BINARY(bitwiseXor, BITWISE_XOR)
POPEMU_BINARY(bitwiseXnor, BITWISE_XNOR)
POPEMU_BINARY(div, DIVIDE)
POPEMU_BINARY(eq, EQUAL)
POPEMU_BINARY(gteq, GREATER_THAN_EQUAL)
POPEMU_BINARY(gt, GREATER_THAN)
POPEMU_BINARY(lteq, LESS_THAN_EQUAL)
POPEMU_BINARY(logicalAnd, LOGICAL_AND)
POPEMU_BINARY(logicalOr, LOGICAL_OR)
POPEMU_BINARY(lt, LESS_THAN)
POPEMU_BINARY(max, MAXIMUM)
POPEMU_BINARY(min, MINIMUM)
POPEMU_BINARY(mul, MULTIPLY)
POPEMU_BINARY(neq, NOT_EQUAL)
POPEMU_BINARY(pow, POWER)
POPEMU_BINARY(rem, REMAINDER)
POPEMU_BINARY(shiftLeft, SHIFT_LEFT)
POPEMU_BINARY(shiftRight, SHIFT_RIGHT)
POPEMU_BINARY(shiftRightSignExtend, SHIFT_RIGHT_SIGN_EXTEND)
POPEMU_BINARY(sub, SUBTRACT)
POPEMU_BINARY(invStdDevToVariance, INV_STD_DEV_TO_VARIANCE)
POPEMU_BINARY(varianceToInvStdDev, VARIANCE_TO_INV_STD_DEV)
POPEMU_TERNARY(select, SELECT)
POPEMU_TERNARY(clamp, CLAMP)

#undef POPEMU_UNARY
#undef POPEMU_BINARY
#undef POPEMU_TERNARY

} // namespace popops
