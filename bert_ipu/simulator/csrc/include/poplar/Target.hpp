#pragma once

#include <poplar/Type.hpp>

namespace poplar {

enum class TargetType { IPU, IPU_MODEL, CPU };

// The IPU that costs are estimated for. Defaults are a Mk2 (GC200); sources of
// the numbers: graphcore/poptorch popart_compiler/source/Utils.cpp (tiles),
// graphcore/popart tests/integration/available_memory_proportion_test.py
// (memory), poplibs' estimators (worker contexts, vector width).
class Target {
public:
  explicit Target(unsigned numTiles = 1472) : numTiles_(numTiles) {}

  TargetType getTargetType() const { return TargetType::IPU_MODEL; }
  unsigned getNumTiles() const { return numTiles_; }
  unsigned getTilesPerIPU() const { return numTiles_; }
  unsigned getNumIPUs() const { return 1; }
  unsigned getNumVirtualIPUs() const { return 1; }
  unsigned getNumWorkerContexts() const { return 6; }
  unsigned getBytesPerTile() const { return 638976; }
  unsigned getDataPathWidth() const { return 64; }
  unsigned getExchangeBytesPerCycle() const { return 4; }
  unsigned getVectorWidth(const Type &type) const {
    return 8 / getTypeSize(type);
  }
  unsigned getTypeSize(const Type &type) const;
  unsigned getAtomicStoreGranularity() const { return 4; }
  double getTileClockFrequency() const { return 1.33e9; }

private:
  unsigned numTiles_;
};

} // namespace poplar
