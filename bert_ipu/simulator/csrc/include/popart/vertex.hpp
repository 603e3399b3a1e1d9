#pragma once

#include <string>

namespace popart {

enum class PathToLoss { Undefined, Yes, No };
enum class PathFromLoss { Undefined, Yes, No };
enum class ScheduledPreLoss { Undefined, Yes, No };

// What ops and tensors have in common.
class Vertex {
public:
  virtual ~Vertex() = default;
  virtual std::string str() const = 0;

  PathToLoss toLoss{PathToLoss::Undefined};
  PathFromLoss fromLoss{PathFromLoss::Undefined};
  ScheduledPreLoss scheduledPreLoss{ScheduledPreLoss::Undefined};
};

} // namespace popart
