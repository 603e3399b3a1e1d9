#include <popart/logging.hpp>

#include <cstdlib>
#include <iostream>

namespace popart {
namespace logging {
namespace {

Level levelFromEnvironment() {
  const char *value = std::getenv("POPART_LOG_LEVEL");
  const std::string name = value ? value : "WARN";
  const char *const names[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERR", "OFF"};
  for (int i = 0; i < 6; ++i)
    if (name == names[i])
      return static_cast<Level>(i);
  return Level::Warn;
}

} // namespace

bool shouldLog(Level level) {
  static const Level enabled = levelFromEnvironment();
  return level >= enabled;
}

void write(Level level, const char *module, const std::string &message) {
  static const char letters[] = "TDIWE";
  std::cerr << "[" << module << "] [" << letters[static_cast<int>(level)]
            << "] " << message << "\n";
}

namespace detail {

std::size_t writeUntilBrace(std::ostream &os, const std::string &text,
                            std::size_t from) {
  const std::size_t open = text.find('{', from);
  const std::size_t close =
      open == std::string::npos ? open : text.find('}', open);
  if (close == std::string::npos) {
    os << text.substr(from);
    return close;
  }
  os << text.substr(from, open - from);
  return close + 1;
}

} // namespace detail
} // namespace logging
} // namespace popart
