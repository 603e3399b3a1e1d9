#include "crash_report.hpp"

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unistd.h>

namespace popemu {
namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
constexpr int numSignals = sizeof(signals) / sizeof(signals[0]);
constexpr int failed = 113;

thread_local const char *running = nullptr;
thread_local const char *runningPart = nullptr;
struct sigaction previous[numSignals];

// Only calls that are allowed in a signal handler.
void say(const char *text) {
  const auto written = write(STDERR_FILENO, text, std::strlen(text));
  (void)written;
}

void sayWhere(const char *happened) {
  say("\ncustom op: ");
  say(running);
  if (runningPart) {
    say(", ");
    say(runningPart);
  }
  say(happened);
}

const char *nameOf(int signal) {
  switch (signal) {
  case SIGSEGV:
    return " crashed with SIGSEGV: it read or wrote memory that is not its "
           "own\n";
  case SIGBUS:
    return " crashed with SIGBUS\n";
  case SIGFPE:
    return " crashed with SIGFPE: an integer division by zero, perhaps\n";
  case SIGILL:
    return " crashed with SIGILL\n";
  default:
    return " crashed with SIGABRT: it called abort(), or an exception left "
           "it\n";
  }
}

// Then whoever handled the signal before, Python's faulthandler perhaps, and
// in the end the process dies of it.
void onCrash(int signal, siginfo_t *info, void *) {
  if (running)
    sayWhere(nameOf(signal));
  for (int i = 0; i < numSignals; ++i)
    if (signals[i] == signal)
      sigaction(signal, &previous[i], nullptr);
  const bool repeatsByItself = info->si_code > 0;
  if (!repeatsByItself)
    raise(signal);
}

void onExit() {
  if (!running)
    return;
  sayWhere(" called exit(), which ends the process; throw popart::error "
           "instead\n");
  _exit(failed);
}

void install() {
  struct sigaction action = {};
  action.sa_sigaction = onCrash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < numSignals; ++i)
    sigaction(signals[i], &action, &previous[i]);
  std::atexit(onExit);
}

} // namespace

UserCode::UserCode(const char *what) : outer_(running) {
  static std::once_flag once;
  std::call_once(once, install);
  running = what;
}

UserCode::~UserCode() {
  running = outer_;
  runningPart = nullptr;
}

void UserCode::enter(const char *part) { runningPart = part; }

} // namespace popemu
