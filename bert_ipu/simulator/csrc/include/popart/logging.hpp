// Text formatting with {} and logging. Messages go to stderr at the level of
// POPART_LOG_LEVEL (TRACE, DEBUG, INFO, WARN, ERR, OFF; default WARN).
#pragma once

#include <ostream>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace popart {
namespace logging {

enum class Level { Trace = 0, Debug, Info, Warn, Err, Off };

void write(Level level, const char *module, const std::string &message);
bool shouldLog(Level level);

namespace detail {

template <typename T> void print(std::ostream &os, const T &value) {
  os << value;
}
template <typename T> void print(std::ostream &os, const std::vector<T> &list) {
  os << "[";
  for (std::size_t i = 0; i < list.size(); ++i) {
    os << (i ? ", " : "");
    print(os, list[i]);
  }
  os << "]";
}
template <typename T> void print(std::ostream &os, const std::set<T> &set) {
  print(os, std::vector<T>(set.begin(), set.end()));
}

// Writes up to the next {} and says where the rest begins.
std::size_t writeUntilBrace(std::ostream &os, const std::string &text,
                            std::size_t from);

inline void formatInto(std::ostream &os, const std::string &text,
                       std::size_t from) {
  os << text.substr(from);
}
template <typename First, typename... Rest>
void formatInto(std::ostream &os, const std::string &text, std::size_t from,
                const First &first, const Rest &...rest) {
  const std::size_t next = writeUntilBrace(os, text, from);
  if (next == std::string::npos)
    return;
  print(os, first);
  formatInto(os, text, next, rest...);
}

} // namespace detail

template <typename... Args>
std::string format(const std::string &text, const Args &...args) {
  std::ostringstream os;
  detail::formatInto(os, text, 0, args...);
  return os.str();
}

#define POPEMU_LOG_LEVEL(name, Level_, module)                                 \
  template <typename... Args>                                                  \
  void name(const std::string &text, const Args &...args) {                    \
    if (shouldLog(Level::Level_))                                              \
      write(Level::Level_, module, format(text, args...));                     \
  }
#define POPEMU_LOG_LEVELS(module)                                              \
  POPEMU_LOG_LEVEL(trace, Trace, module)                                       \
  POPEMU_LOG_LEVEL(debug, Debug, module)                                       \
  POPEMU_LOG_LEVEL(info, Info, module)                                         \
  POPEMU_LOG_LEVEL(warn, Warn, module)                                         \
  POPEMU_LOG_LEVEL(err, Err, module)
#define POPEMU_LOG_MODULE(module)                                              \
  namespace module {                                                           \
  POPEMU_LOG_LEVELS(#module)                                                   \
  }

POPEMU_LOG_LEVELS("popart")
POPEMU_LOG_MODULE(session)
POPEMU_LOG_MODULE(ir)
POPEMU_LOG_MODULE(op)
POPEMU_LOG_MODULE(opx)
POPEMU_LOG_MODULE(pattern)
POPEMU_LOG_MODULE(transform)
POPEMU_LOG_MODULE(devicex)
POPEMU_LOG_MODULE(builder)
POPEMU_LOG_MODULE(autodiff)

#undef POPEMU_LOG_MODULE
#undef POPEMU_LOG_LEVELS
#undef POPEMU_LOG_LEVEL

} // namespace logging
} // namespace popart
