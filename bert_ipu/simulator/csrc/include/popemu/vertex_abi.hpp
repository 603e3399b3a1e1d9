// How a compiled codelet describes its vertices to the runtime. Plain data and
// function pointers, so that codelets and runtime need not share C++ types.
#pragma once

#include <cstddef>

namespace popemu {

constexpr unsigned vertexAbiVersion = 1;

enum class FieldDirection : unsigned { State, Input, InOut, Output };

struct Span {
  void *data;
  std::size_t size;
};

struct FieldDescriptor {
  const char *name;
  FieldDirection direction;
  unsigned type;            // poplar::Type id of one element
  unsigned depth;           // 0 one value, 1 vector, 2 vector of vectors
  std::size_t elementBytes; // of one inner vector, for depth 2
  // Points the field at `count` spans; `arena` has count * elementBytes bytes.
  void (*bind)(void *vertex, const Span *spans, std::size_t count, void *arena);
};

struct VertexDescriptor {
  const char *name;
  std::size_t bytes;
  unsigned workers; // how often compute runs: 6 for a MultiVertex, else 1
  void (*construct)(void *memory);
  bool (*compute)(void *vertex, unsigned worker);
  const FieldDescriptor *fields;
  std::size_t fieldCount;
};

} // namespace popemu
