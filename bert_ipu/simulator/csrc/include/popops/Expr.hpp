// Elementwise expressions: trees that popops::map turns into one step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <poplar/Tensor.hpp>
#include <poplar/Type.hpp>
#include <popops/ExprOp.hpp>

namespace popops {
namespace expr {

class Expr {
public:
  virtual ~Expr();
  virtual std::unique_ptr<Expr> clone() const = 0;
  virtual std::string name(const std::vector<poplar::Tensor> &inputs) const = 0;

  template <typename T> bool isA() const { return getAs<T>() != nullptr; }
  template <typename T> const T *getAs() const {
    return dynamic_cast<const T *>(this);
  }
};

// Any expression, by value.
class Any {
public:
  Any(const Expr &expr) : expr_(expr.clone()) {}
  Any(const Any &other) : expr_(other.expr_->clone()) {}
  Any(Any &&) = default;
  Any &operator=(const Any &other) {
    expr_ = other.expr_->clone();
    return *this;
  }
  Any &operator=(Any &&) = default;
  operator Expr &() { return *expr_; }
  operator const Expr &() const { return *expr_; }
  std::string name(const std::vector<poplar::Tensor> &inputs) const {
    return expr_->name(inputs);
  }

private:
  std::unique_ptr<Expr> expr_;
};

class Const : public Expr {
public:
  template <typename T, typename = typename std::enable_if<
                            std::is_arithmetic<T>::value>::type>
  Const(T x)
      : Const(poplar::equivalent_device_type<T>().value,
              static_cast<double>(x)) {}

  const poplar::Type &getType() const { return type_; }
  double getDataAsDouble() const { return value_; }
  std::unique_ptr<Expr> clone() const override {
    return std::unique_ptr<Expr>(new Const(*this));
  }
  std::string name(const std::vector<poplar::Tensor> &) const override;

protected:
  Const(poplar::Type type, double value) : type_(type), value_(value) {}

private:
  poplar::Type type_;
  double value_;
};

class ConstHalf : public Const {
public:
  ConstHalf(float x) : Const(poplar::HALF, static_cast<double>(x)) {}
};

inline ConstHalf operator"" _half(long double x) {
  return ConstHalf(static_cast<float>(x));
}

class Cast : public Expr {
public:
  Cast(const Expr &a, const poplar::Type type) : a_(a.clone()), type_(type) {}
  Cast(const Cast &other) : Cast(*other.a_, other.type_) {}
  const Expr &getLHS() const { return *a_; }
  const poplar::Type &getRHSType() const { return type_; }
  std::unique_ptr<Expr> clone() const override {
    return std::unique_ptr<Expr>(new Cast(*this));
  }
  std::string name(const std::vector<poplar::Tensor> &inputs) const override;

private:
  std::unique_ptr<Expr> a_;
  poplar::Type type_;
};

// The index-th input of the map, counted from 1.
class PlaceHolder : public Expr {
public:
  PlaceHolder(unsigned index) : index_(index) {}
  unsigned getIndex() const { return index_; }
  std::unique_ptr<Expr> clone() const override {
    return std::unique_ptr<Expr>(new PlaceHolder(*this));
  }
  std::string name(const std::vector<poplar::Tensor> &inputs) const override;

private:
  unsigned index_;
};

const PlaceHolder _1(1);
const PlaceHolder _2(2);
const PlaceHolder _3(3);
const PlaceHolder _4(4);
const PlaceHolder _5(5);
const PlaceHolder _6(6);
const PlaceHolder _7(7);
const PlaceHolder _8(8);
const PlaceHolder _9(9);
const PlaceHolder _10(10);
const PlaceHolder _11(11);
const PlaceHolder _12(12);
const PlaceHolder _13(13);
const PlaceHolder _14(14);
const PlaceHolder _15(15);
const PlaceHolder _16(16);
const PlaceHolder _17(17);
const PlaceHolder _18(18);
const PlaceHolder _19(19);
const PlaceHolder _20(20);

class UnaryOp : public Expr {
public:
  UnaryOp(UnaryOpType type, const Expr &a) : type_(type), a_(a.clone()) {}
  UnaryOp(const UnaryOp &other) : UnaryOp(other.type_, *other.a_) {}
  UnaryOpType getOpType() const { return type_; }
  const Expr &getArg() const { return *a_; }
  std::unique_ptr<Expr> clone() const override {
    return std::unique_ptr<Expr>(new UnaryOp(*this));
  }
  std::string name(const std::vector<poplar::Tensor> &inputs) const override;

private:
  UnaryOpType type_;
  std::unique_ptr<Expr> a_;
};

class BinaryOp : public Expr {
public:
  BinaryOp(BinaryOpType type, const Expr &a, const Expr &b)
      : type_(type), a_(a.clone()), b_(b.clone()) {}
  BinaryOp(const BinaryOp &other)
      : BinaryOp(other.type_, *other.a_, *other.b_) {}
  BinaryOpType getOpType() const { return type_; }
  const Expr &getLHS() const { return *a_; }
  const Expr &getRHS() const { return *b_; }
  std::unique_ptr<Expr> clone() const override {
    return std::unique_ptr<Expr>(new BinaryOp(*this));
  }
  std::string name(const std::vector<poplar::Tensor> &inputs) const override;

private:
  BinaryOpType type_;
  std::unique_ptr<Expr> a_, b_;
};

class TernaryOp : public Expr {
public:
  TernaryOp(TernaryOpType type, const Expr &a, const Expr &b, const Expr &c)
      : type_(type), a_(a.clone()), b_(b.clone()), c_(c.clone()) {}
  TernaryOp(const TernaryOp &other)
      : TernaryOp(other.type_, *other.a_, *other.b_, *other.c_) {}
  TernaryOpType getOpType() const { return type_; }
  const Expr &getArg0() const { return *a_; }
  const Expr &getArg1() const { return *b_; }
  const Expr &getArg2() const { return *c_; }
  std::unique_ptr<Expr> clone() const override {
    return std::unique_ptr<Expr>(new TernaryOp(*this));
  }
  std::string name(const std::vector<poplar::Tensor> &inputs) const override;

private:
  TernaryOpType type_;
  std::unique_ptr<Expr> a_, b_, c_;
};

#define POPEMU_UNARY(Name, Type)                                               \
  class Name : public UnaryOp {                                                \
  public:                                                                      \
    Name(const Expr &a) : UnaryOp(UnaryOpType::Type, a) {}                     \
  };
#define POPEMU_BINARY(Name, Type)                                              \
  class Name : public BinaryOp {                                               \
  public:                                                                      \
    Name(const Expr &a, const Expr &b) : BinaryOp(BinaryOpType::Type, a, b) {} \
  };
#define POPEMU_UNARY_SYMBOL(Name, Type, Symbol)                                \
  POPEMU_UNARY(Name, Type)                                                     \
  inline Name operator Symbol(const Expr &a) { return Name(a); }
#define POPEMU_BINARY_SYMBOL(Name, Type, Symbol)                               \
  POPEMU_BINARY(Name, Type)                                                    \
  inline Name operator Symbol(const Expr &a, const Expr &b) {                  \
    return Name(a, b);                                                         \
  }                                                                            \
  template <typename T,                                                        \
            typename =                                                         \
                typename std::enable_if<std::is_arithmetic<T>::value>::type>   \
  Name operator Symbol(T a, const Expr &b) {                                   \
    return Name(Const(a), b);                                                  \
  }                                                                            \
  template <typename T,                                                        \
            typename =                                                         \
                typename std::enable_if<std::is_arithmetic<T>::value>::type>   \
  Name operator Symbol(const Expr &a, T b) {                                   \
    return Name(a, Const(b));                                                  \
  }

POPEMU_UNARY(Abs, ABSOLUTE)
POPEMU_UNARY(Asin, ASIN)
POPEMU_UNARY_SYMBOL(BitwiseNot, BITWISE_NOT, ~)
POPEMU_UNARY(Cbrt, CBRT)
POPEMU_UNARY(Erf, ERF)
POPEMU_UNARY(Ceil, CEIL)
POPEMU_UNARY(Cos, COS)
POPEMU_UNARY(Exp, EXPONENT)
POPEMU_UNARY(Expm1, EXPONENT_MINUS_ONE)
POPEMU_UNARY(Exp2, EXPONENT2)
POPEMU_UNARY(Floor, FLOOR)
POPEMU_UNARY(GeluErf, GELU_ERF)
POPEMU_UNARY(Inv, INVERSE)
POPEMU_UNARY(IsFinite, IS_FINITE)
POPEMU_UNARY(IsInf, IS_INF)
POPEMU_UNARY(IsNaN, IS_NAN)
POPEMU_UNARY(Log, LOGARITHM)
POPEMU_UNARY(Log1p, LOGARITHM_ONE_PLUS)
POPEMU_UNARY_SYMBOL(Not, LOGICAL_NOT, !)
POPEMU_UNARY_SYMBOL(Neg, NEGATE, -)
POPEMU_UNARY(NearbyInt, NEARBY_INT)
POPEMU_UNARY(Signum, SIGNUM)
POPEMU_UNARY(Sin, SIN)
POPEMU_UNARY(Tan, TAN)
POPEMU_UNARY(Tanh, TANH)
POPEMU_UNARY(Round, ROUND)
POPEMU_UNARY(Trunc, TRUNC)
POPEMU_UNARY(Sqrt, SQRT)
POPEMU_UNARY(Square, SQUARE)
POPEMU_UNARY(Sigmoid, SIGMOID)
POPEMU_UNARY(Rsqrt, RSQRT)
POPEMU_BINARY_SYMBOL(Add, ADD, +)
POPEMU_BINARY(Atan2, ATAN2)
POPEMU_BINARY_SYMBOL(BitwiseAnd, BITWISE_AND, &)
POPEMU_BINARY_SYMBOL(BitwiseOr, BITWISE_OR, |)
POPEMU_BINARY_SYMBOL(BitwiseXor, BITWISE_XOR, ^)
POPEMU_BINARY(BitwiseXnor, BITWISE_XNOR)
POPEMU_BINARY_SYMBOL(Divide, DIVIDE, /)
POPEMU_BINARY_SYMBOL(Equal, EQUAL, ==)
POPEMU_BINARY_SYMBOL(Gte, GREATER_THAN_EQUAL, >=)
POPEMU_BINARY_SYMBOL(Gt, GREATER_THAN, >)
POPEMU_BINARY_SYMBOL(Lte, LESS_THAN_EQUAL, <=)
POPEMU_BINARY_SYMBOL(And, LOGICAL_AND, &&)
POPEMU_BINARY_SYMBOL(Or, LOGICAL_OR, ||)
POPEMU_BINARY_SYMBOL(Lt, LESS_THAN, <)
POPEMU_BINARY(InvStdDevToVariance, INV_STD_DEV_TO_VARIANCE)
POPEMU_BINARY(Max, MAXIMUM)
POPEMU_BINARY(Min, MINIMUM)
POPEMU_BINARY_SYMBOL(Mul, MULTIPLY, *)
POPEMU_BINARY_SYMBOL(NotEqual, NOT_EQUAL, !=)
POPEMU_BINARY(Pow, POWER)
POPEMU_BINARY_SYMBOL(Rem, REMAINDER, %)
POPEMU_BINARY_SYMBOL(Shl, SHIFT_LEFT, <<)
POPEMU_BINARY_SYMBOL(Shr, SHIFT_RIGHT, >>)
POPEMU_BINARY(ShrSE, SHIFT_RIGHT_SIGN_EXTEND)
POPEMU_BINARY_SYMBOL(Sub, SUBTRACT, -)
POPEMU_BINARY(VarianceToInvStdDev, VARIANCE_TO_INV_STD_DEV)

#undef POPEMU_UNARY
#undef POPEMU_BINARY
#undef POPEMU_UNARY_SYMBOL
#undef POPEMU_BINARY_SYMBOL

// Select(a, b, c) is c ? a : b.
class Select : public TernaryOp {
public:
  Select(const Expr &a, const Expr &b, const Expr &c)
      : TernaryOp(TernaryOpType::SELECT, a, b, c) {}
};

// Clamp(a, low, high).
class Clamp : public TernaryOp {
public:
  Clamp(const Expr &a, const Expr &b, const Expr &c)
      : TernaryOp(TernaryOpType::CLAMP, a, b, c) {}
};

} // namespace expr
} // namespace popops
