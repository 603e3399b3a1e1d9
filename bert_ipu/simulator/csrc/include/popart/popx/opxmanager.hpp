#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <popart/error.hpp>
#include <popart/operatoridentifier.hpp>
#include <popemu/api_version.hpp>

namespace popart {

class Op;

namespace popx {

class Devicex;
class Opx;

// All implementations by op. The first registration of a name wins.
class OpxManager {
public:
  using OpxFactoryFunc =
      std::function<std::unique_ptr<Opx>(Op *op, Devicex *devicex)>;
  static void registerOpx(const OperatorIdentifier &opid, OpxFactoryFunc func);
  // Throws when the op has none.
  static std::unique_ptr<Opx> createOpx(Op *op, Devicex *devicex);
};

// Registers an implementation when it is constructed.
template <class OPX> class OpxCreator {
public:
  OpxCreator(const OperatorIdentifier &opid)
      : OpxCreator(std::vector<OperatorIdentifier>{opid}) {}
  OpxCreator(const std::vector<OperatorIdentifier> &opids) {
    registerAll(opids, [](Op *op, Devicex *devicex) {
      return std::unique_ptr<Opx>(new OPX(op, devicex));
    });
  }
  OpxCreator(const OperatorIdentifier &opid, OpxManager::OpxFactoryFunc func)
      : OpxCreator(std::vector<OperatorIdentifier>{opid}, func) {}
  OpxCreator(const std::vector<OperatorIdentifier> &opids,
             OpxManager::OpxFactoryFunc func) {
    registerAll(opids, func);
  }

private:
  static void registerAll(const std::vector<OperatorIdentifier> &opids,
                          const OpxManager::OpxFactoryFunc &func) {
    for (const auto &opid : opids)
      OpxManager::registerOpx(opid, func);
  }
};

} // namespace popx
} // namespace popart
