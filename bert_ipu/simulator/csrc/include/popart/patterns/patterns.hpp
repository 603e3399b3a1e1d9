#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <typeindex>
#include <vector>

#include <popart/error.hpp>
#include <popart/patterns/pattern.hpp>
#include <popemu/api_version.hpp>

namespace popart {

// All patterns of the process. The first registration of a type wins.
class PreAliasPatternManager {
public:
  using Factory = std::function<std::unique_ptr<PreAliasPattern>()>;
  struct PatternInfo {
    std::string name;
    bool enabledByDefault;
    bool mandatory;
    Factory factory;
  };

  static void registerPattern(const std::type_index &type,
                              const std::string &name, bool enabled,
                              bool mandatory, Factory factory);
  // Sorted by name, which is the order custom patterns run in.
  static std::vector<PatternInfo> registered();
  static const std::string &nameOf(const std::type_index &type);
};

// Registers a pattern when it is constructed, as a static object usually.
template <class PATTERN> class PatternCreator {
public:
  PatternCreator(std::string name, bool enabled = true,
                 bool mandatory = false) {
    PreAliasPatternManager::registerPattern(
        std::type_index(typeid(PATTERN)), name, enabled, mandatory,
        [] { return std::unique_ptr<PreAliasPattern>(new PATTERN()); });
  }
};

} // namespace popart
