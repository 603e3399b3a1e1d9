#include "isolate.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sys/wait.h>
#include <unistd.h>

#include <popart/error.hpp>

namespace popemu {
namespace {

constexpr int survived = 0;
constexpr int calledExit = 113;

[[noreturn]] void runInChild(const std::function<void()> &action) {
  // Registered last, so it runs first: none of the process's own exit handlers
  // run in this copy of it.
  std::atexit([] { _exit(calledExit); });
  // Nor its crash reporters: the parent tells what happened.
  for (int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL})
    std::signal(signal, SIG_DFL);
  try {
    action();
  } catch (...) {
    // The parent will meet the same exception.
  }
  _exit(survived);
}

} // namespace

void rehearse(const std::string &what, const std::function<void()> &action) {
  const pid_t child = fork();
  if (child < 0)
    throw popart::error("cannot rehearse {}: {}", what, std::strerror(errno));
  if (child == 0)
    runInChild(action);
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      throw popart::error("lost the rehearsal of {}: {}", what,
                          std::strerror(errno));
  if (WIFSIGNALED(status))
    throw popart::error("{} crashed with signal {} ({})", what,
                        WTERMSIG(status), strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) != survived)
    throw popart::error("{} called exit(), which would end the process; throw "
                        "popart::error instead",
                        what);
}

} // namespace popemu
