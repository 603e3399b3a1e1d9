// poprand: a counter-based generator, so that an element's bits depend on the
// seed, the modifier and the element alone.
#include <poprand/RandomGen.hpp>

#include <algorithm>
#include <cmath>
#include <functional>

#include "core.hpp"
#include "cost.hpp"

namespace popemu {
namespace {

using poplar::Tensor;

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// Draws in (0, 1), of one element.
class Draws {
public:
  Draws(std::uint64_t key, std::uint64_t element)
      : state_(mix(key ^ mix(element + 0x9e3779b97f4a7c15ull))) {}
  double next() {
    state_ += 0x9e3779b97f4a7c15ull;
    return (double(mix(state_) >> 11) + 0.5) * 0x1.0p-53;
  }
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(next()));
    return radius * std::cos(2.0 * M_PI * next());
  }

private:
  std::uint64_t state_;
};

using Draw = std::function<double(Draws &)>;

struct RandomStep : Step {
  RandomStep(GraphCore &graph, const Tensor *seedTensor, std::uint32_t modifier,
             const Tensor &out, Draw draw)
      : graph(graph), modifier(modifier), out(out), draw(std::move(draw)) {
    if (seedTensor)
      seed = std::make_unique<Operand>(seedTensor->flatten());
  }

  std::uint64_t key() {
    std::uint64_t words = graph.seed;
    if (seed) {
      const auto *given = seed->read<std::uint32_t>();
      words = given[0] | std::uint64_t(seed->size() > 1 ? given[1] : 0) << 32;
    }
    return mix(words) ^ mix(~std::uint64_t(modifier));
  }

  void run() override {
    const std::uint64_t k = key();
    char *target = out.beginWrite();
    const char *source = input ? input->read() : nullptr;
    for (std::size_t i = 0; i < out.size(); ++i) {
      Draws draws(k, i);
      double value = draw(draws);
      if (source)
        value *= loadDouble(source + i * sizeOf(input->type()), input->type());
      storeDouble(value, out.type(), target + i * sizeOf(out.type()));
    }
    out.commit();
  }

  GraphCore &graph;
  std::unique_ptr<Operand> seed;
  std::unique_ptr<Operand> input; // multiplied by the draw, for dropout
  std::uint32_t modifier;
  Operand out;
  Draw draw;
};

Tensor recordRandom(poplar::Graph &graph, const Tensor *seed,
                    std::uint32_t modifier, const Tensor &reference,
                    const poplar::Type &type, Draw draw,
                    poplar::program::Sequence &prog,
                    const poplar::DebugContext &context,
                    const Tensor *input = nullptr) {
  if (seed &&
      (seed->elementType() != poplar::UNSIGNED_INT || seed->numElements() != 2))
    throw poputil::poplibs_error("a random seed is two unsigned ints, got " +
                                 seed->elementType().toString() + " " +
                                 seed->shapeToString());
  Tensor out = addMapped(graph, type, reference.shape(), context);
  auto step = std::make_shared<RandomStep>(*graph.core(), seed, modifier, out,
                                           std::move(draw));
  std::vector<Tensor> reads;
  if (seed)
    reads.push_back(*seed);
  if (input) {
    step->input = std::make_unique<Operand>(*input);
    reads.push_back(*input);
  }
  const std::size_t n = out.numElements();
  record(prog, step, context, reads, {out},
         {dropoutCycles(graph.getTarget(), n, type),
          n * sizeOf(type) * (input ? 2 : 1)});
  return out;
}

} // namespace
} // namespace popemu

namespace poprand {

using namespace popemu;
using poplar::DebugContext;
using poplar::Graph;
using poplar::Tensor;
using poplar::Type;
using poplar::program::Sequence;

Tensor dropout(Graph &graph, const Tensor *seed, const uint32_t seedModifier,
               const Tensor &input, const Tensor &reference,
               double keepProbability, double scale, Sequence &prog,
               const DebugContext &debugContext) {
  if (input.shape() != reference.shape())
    throw poputil::poplibs_error(
        "dropout: the reference must have the shape of the input");
  const auto keep = [=](Draws &draws) {
    return draws.next() < keepProbability ? scale : 0.0;
  };
  return recordRandom(graph, seed, seedModifier, reference, input.elementType(),
                      keep, prog, debugContext, &input);
}

Tensor uniform(Graph &graph, const Tensor *seed, uint32_t seedModifier,
               const Tensor &reference, const Type &outType, double minVal,
               double maxVal, Sequence &prog,
               const DebugContext &debugContext) {
  // Integers include the upper bound.
  const bool whole = !isFloating(outType);
  return recordRandom(
      graph, seed, seedModifier, reference, outType,
      [=](Draws &draws) {
        const double u = draws.next();
        return whole ? std::floor(minVal + u * (maxVal - minVal + 1))
                     : minVal + u * (maxVal - minVal);
      },
      prog, debugContext);
}

Tensor logUniform(Graph &graph, const Tensor *seed, uint32_t seedModifier,
                  const Tensor &reference, const Type &outType, double minVal,
                  double maxVal, Sequence &prog, double base,
                  const DebugContext &debugContext) {
  const double low = std::log(minVal) / std::log(base);
  const double high = std::log(maxVal) / std::log(base);
  return recordRandom(
      graph, seed, seedModifier, reference, outType,
      [=](Draws &draws) {
        return std::pow(base, low + draws.next() * (high - low));
      },
      prog, debugContext);
}

Tensor bernoulli(Graph &graph, const Tensor *seed, uint32_t seedModifier,
                 const Tensor &reference, const Type &outType, double prob,
                 Sequence &prog, const DebugContext &debugContext) {
  return recordRandom(
      graph, seed, seedModifier, reference, outType,
      [=](Draws &draws) { return draws.next() < prob ? 1.0 : 0.0; }, prog,
      debugContext);
}

Tensor normal(Graph &graph, const Tensor *seed, uint32_t seedModifier,
              const Tensor &reference, const Type &outType, double mean,
              double stdDev, Sequence &prog, const DebugContext &debugContext) {
  return recordRandom(
      graph, seed, seedModifier, reference, outType,
      [=](Draws &draws) { return mean + stdDev * draws.normal(); }, prog,
      debugContext);
}

Tensor truncatedNormal(Graph &graph, const Tensor *seed, uint32_t seedModifier,
                       const Tensor &reference, const Type &outType,
                       double mean, double stdDev, double alpha, Sequence &prog,
                       const DebugContext &debugContext) {
  return recordRandom(
      graph, seed, seedModifier, reference, outType,
      [=](Draws &draws) {
        double z = draws.normal();
        while (std::fabs(z) > alpha)
          z = draws.normal();
        return mean + stdDev * z;
      },
      prog, debugContext);
}

namespace {

struct SetSeedStep : Step {
  SetSeedStep(GraphCore &graph, const Tensor &seed, std::uint32_t modifier)
      : graph(graph), seed(seed.flatten()), modifier(modifier) {}
  void run() override {
    const auto *words = seed.read<std::uint32_t>();
    graph.seed = (words[0] | std::uint64_t(words[1]) << 32) + modifier;
  }
  GraphCore &graph;
  Operand seed;
  std::uint32_t modifier;
};

} // namespace

void setSeed(Graph &graph, const Tensor &masterSeed, uint32_t seedModifier,
             Sequence &prog, const DebugContext &debugContext) {
  record(prog,
         std::make_shared<SetSeedStep>(*graph.core(), masterSeed, seedModifier),
         debugContext, {masterSeed}, {}, {});
}

} // namespace poprand
