#pragma once

namespace popart {
namespace popx {

// Who lays out an input. Layout changes no value, so the emulation only offers
// the names; the upper-case ones are those of SDK 1.
enum class InputCreatorType {
  CanCreate = 0,
  CanUnwind,
  CanCreateOrUnwind,
  Deadend,
  CanDelegate,
  CanDelegateOrUnwind,
  CANCREATE = CanCreate,
  CANUNWIND = CanUnwind,
  DEADEND = Deadend
};

} // namespace popx
} // namespace popart
