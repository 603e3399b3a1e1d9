#include "names.hpp"

#include <algorithm>
#include <numeric>

namespace popemu {
namespace {

std::size_t editDistance(const std::string &a, const std::string &b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t(0));
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

} // namespace

std::string nearestNames(const std::string &name,
                         const std::vector<std::string> &known) {
  if (known.empty())
    return "none are known";
  std::vector<std::string> sorted = known;
  std::sort(sorted.begin(), sorted.end(),
            [&](const std::string &a, const std::string &b) {
              return editDistance(name, a) < editDistance(name, b);
            });
  sorted.resize(std::min<std::size_t>(3, sorted.size()));
  std::string text = "nearest: ";
  for (std::size_t i = 0; i < sorted.size(); ++i)
    text += (i ? ", " : "") + sorted[i];
  return text;
}

} // namespace popemu
