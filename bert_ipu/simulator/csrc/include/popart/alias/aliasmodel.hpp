#pragma once

#include <popart/names.hpp>

namespace popart {

// Which tensors share memory, as ops describe it in growAliasModel. The
// simulator gives every output memory of its own and asks no op for this, so
// that what is inserted has no effect.
class AliasModel {
public:
  void insertUnaryModifier0(const Op &) {}
  void insertUnaryModifier(const Op &, InIndex) {}
  void insertBinaryModifier(const Op &) {}
  void insertNG2aryModifier(const Op &, unsigned int) {}
};

} // namespace popart
