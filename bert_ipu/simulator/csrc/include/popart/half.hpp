#pragma once

#include <cstdint>

namespace popart {

// Storage of a half on the host.
class Half {
public:
  Half() = default;
  Half(float value);
  operator float() const;

private:
  std::uint16_t bits_ = 0;
};

using float16_t = Half;

} // namespace popart
