// Names of expressions, as they appear in debug output.
#include <popops/Expr.hpp>

namespace popops {
namespace expr {

namespace {

std::string join(const std::string &head,
                 std::initializer_list<const Expr *> arguments,
                 const std::vector<poplar::Tensor> &inputs) {
  std::string text = head + "(";
  for (const Expr *argument : arguments)
    text += (text.back() == '(' ? "" : ", ") + argument->name(inputs);
  return text + ")";
}

} // namespace

Expr::~Expr() = default;

std::string Const::name(const std::vector<poplar::Tensor> &) const {
  return std::to_string(value_);
}

std::string Cast::name(const std::vector<poplar::Tensor> &inputs) const {
  return join("cast " + type_.toString(), {a_.get()}, inputs);
}

std::string PlaceHolder::name(const std::vector<poplar::Tensor> &) const {
  return "_" + std::to_string(index_);
}

std::string UnaryOp::name(const std::vector<poplar::Tensor> &inputs) const {
  return join("unary" + std::to_string(int(type_)), {a_.get()}, inputs);
}

std::string BinaryOp::name(const std::vector<poplar::Tensor> &inputs) const {
  return join("binary" + std::to_string(int(type_)), {a_.get(), b_.get()},
              inputs);
}

std::string TernaryOp::name(const std::vector<poplar::Tensor> &inputs) const {
  return join(type_ == TernaryOpType::SELECT ? "select" : "clamp",
              {a_.get(), b_.get(), c_.get()}, inputs);
}

} // namespace expr
} // namespace popops
