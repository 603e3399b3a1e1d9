#pragma once

#include <cstdint>
#include <string>

#include <poplar/StringRef.hpp>

namespace poplar {

using DebugId = std::uint64_t;

class SourceLocation {
public:
  SourceLocation() = default;
  SourceLocation(const char *function, const char *file, unsigned line)
      : function_(function), file_(file), line_(line) {}
  static SourceLocation
  Current(const char *function = __builtin_FUNCTION(),
          const char *file = __builtin_FILE(),
          unsigned line = static_cast<unsigned>(__builtin_LINE())) {
    return SourceLocation(function, file, line);
  }
  StringRef getFunctionName() const { return function_; }
  StringRef getFileName() const { return file_; }
  unsigned getLineNumber() const { return line_; }
  bool isValid() const { return line_ != 0; }

private:
  const char *function_ = "";
  const char *file_ = "";
  unsigned line_ = 0;
};

class DebugContext;

// A path name like "encoder/3/dropout" plus the id of its parent.
class DebugNameAndId {
public:
  DebugNameAndId(std::string name = "", DebugId id = 0, std::string parent = "")
      : name_(std::move(name)), parent_(std::move(parent)), id_(id) {}
  DebugNameAndId(const char *name) : DebugNameAndId(std::string(name)) {}
  DebugNameAndId(const DebugNameAndId &parent, StringRef name)
      : DebugNameAndId(std::string(name), parent.id_, parent.getPathName()) {}

  std::string getPathName() const {
    if (parent_.empty() || name_.empty())
      return parent_ + name_;
    return parent_ + "/" + name_;
  }
  std::string getName() const { return name_; }
  DebugId getId() const { return id_; }

private:
  std::string name_;
  std::string parent_;
  DebugId id_;
};

// Names the poplar objects an op creates; only the name is kept.
class DebugContext {
public:
  DebugContext(SourceLocation loc = SourceLocation::Current()) { (void)loc; }
  DebugContext(const char *name, SourceLocation loc = SourceLocation::Current())
      : nameAndId_(name) {
    (void)loc;
  }
  DebugContext(std::string name, SourceLocation loc = SourceLocation::Current())
      : nameAndId_(std::move(name)) {
    (void)loc;
  }
  DebugContext(StringRef name, SourceLocation loc = SourceLocation::Current())
      : nameAndId_(std::string(name)) {
    (void)loc;
  }
  DebugContext(const DebugNameAndId &nameAndId, StringRef name = {},
               SourceLocation loc = SourceLocation::Current())
      : nameAndId_(nameAndId, name) {
    (void)loc;
  }

  std::string getPathName() const { return nameAndId_.getPathName(); }
  const DebugNameAndId &getNameAndId() const { return nameAndId_; }

private:
  DebugNameAndId nameAndId_;
};

class DebugInfo {
public:
  DebugInfo(const DebugContext &context, std::string api)
      : context_(context), api_(std::move(api)) {}
  DebugId getId() const { return 0; }
  std::string getPathName() const { return context_.getPathName(); }

private:
  DebugContext context_;
  std::string api_;
};

} // namespace poplar
