#pragma once

#include <vector>

namespace popart {

enum class TensorStorage { OffChip, OnChip };
enum class TileSet { Compute, IO, Undefined };
enum class ReplicatedTensorSharding { Off, On };

class TensorLocation {
public:
  TensorStorage storage = TensorStorage::OnChip;
  TileSet loadTileSet = TileSet::Compute;
  TileSet storageTileSet = TileSet::Compute;
  ReplicatedTensorSharding replicatedTensorSharding =
      ReplicatedTensorSharding::Off;
  bool isRemote() const { return storage == TensorStorage::OffChip; }
};

} // namespace popart
