#pragma once

#include <initializer_list>
#include <map>
#include <string>
#include <utility>

namespace poplar {

// Named options; the emulation accepts all and acts on none, because options
// steer layout and planning, never values.
class OptionFlags {
public:
  using OptionFlag = std::pair<const std::string, std::string>;
  using iterator = std::map<std::string, std::string>::const_iterator;

  OptionFlags() = default;
  OptionFlags(std::initializer_list<OptionFlag> flags) : flags_(flags) {}

  void set(std::initializer_list<OptionFlag> flags) {
    for (const auto &flag : flags)
      flags_[flag.first] = flag.second;
  }
  void set(const std::string &option, const std::string &value) {
    flags_[option] = value;
  }
  const std::string &at(const std::string &option) const {
    return flags_.at(option);
  }
  void clear() { flags_.clear(); }
  iterator begin() const { return flags_.begin(); }
  iterator end() const { return flags_.end(); }
  bool operator==(const OptionFlags &other) const {
    return flags_ == other.flags_;
  }

private:
  std::map<std::string, std::string> flags_;
};

} // namespace poplar
