// Says whose code it was when the user's C++ ends the process.
#pragma once

#include <string>

namespace popemu {

// While it lives, the code that runs on this thread is the user's: a crash
// prints `what` before the process dies of its signal, and a call of exit()
// prints it and fails, whatever status was asked for. `what` must outlive it.
class UserCode {
public:
  explicit UserCode(const char *what);
  explicit UserCode(const std::string &what) : UserCode(what.c_str()) {}
  ~UserCode();
  UserCode(const UserCode &) = delete;
  UserCode &operator=(const UserCode &) = delete;

  // Names a part of it, such as a vertex; null when that part is done.
  static void enter(const char *part);

private:
  const char *outer_;
};

} // namespace popemu
