// Operators on blocks of elements. Floats (and halves, rounded afterwards) are
// computed as float, everything else as 64-bit integers that are wrapped to
// their type afterwards.
#pragma once

#include <cstddef>
#include <cstdint>

#include <popops/ExprOp.hpp>

namespace popemu {

bool isComparison(popops::expr::BinaryOpType op);
bool isPredicate(popops::expr::UnaryOpType op); // bool from a number

void applyUnary(popops::expr::UnaryOpType op, const float *a, float *out,
                std::size_t n);
void applyUnary(popops::expr::UnaryOpType op, unsigned bits, bool isBool,
                const std::int64_t *a, std::int64_t *out, std::size_t n);
void applyPredicate(popops::expr::UnaryOpType op, const float *a,
                    std::int64_t *out, std::size_t n);
void applyBinary(popops::expr::BinaryOpType op, const float *a, const float *b,
                 float *out, std::size_t n);
void applyBinary(popops::expr::BinaryOpType op, unsigned bits,
                 const std::int64_t *a, const std::int64_t *b,
                 std::int64_t *out, std::size_t n);
void applyComparison(popops::expr::BinaryOpType op, const float *a,
                     const float *b, std::int64_t *out, std::size_t n);

} // namespace popemu
