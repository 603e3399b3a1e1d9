// Describes vertex classes to the runtime; used only by the glue that is
// generated for each codelet source.
#pragma once

#include <new>

#include <popemu/vertex_abi.hpp>
#include <poplar/Type.hpp>
#include <poplar/Vertex.hpp>

namespace popemu {

template <typename T> struct ElementType {
  static unsigned id() {
    return poplar::equivalent_device_type<typename std::conditional<
        std::is_enum<T>::value, unsigned, T>::type>()
        .value.id();
  }
};
template <> struct ElementType<half> {
  static unsigned id() { return poplar::HALF.id(); }
};

// A plain member: state with an initial value.
template <typename F> struct FieldTraits {
  static_assert(std::is_arithmetic<F>::value || std::is_enum<F>::value ||
                    std::is_same<F, half>::value,
                "a vertex field is a number, a Vector, or an Input, Output or "
                "InOut of one");
  static constexpr FieldDirection direction = FieldDirection::State;
  static constexpr unsigned depth = 0;
  static constexpr std::size_t elementBytes = 0;
  static unsigned type() { return ElementType<F>::id(); }
  static void bind(F &field, const Span *spans, std::size_t, void *) {
    field = *static_cast<const F *>(spans[0].data);
  }
};

template <typename F, typename T, FieldDirection Direction>
struct ScalarTraits {
  static constexpr FieldDirection direction = Direction;
  static constexpr unsigned depth = 0;
  static constexpr std::size_t elementBytes = 0;
  static unsigned type() { return ElementType<T>::id(); }
  static void bind(F &field, const Span *spans, std::size_t, void *) {
    field.set(static_cast<T *>(spans[0].data));
  }
};
template <typename T>
struct FieldTraits<poplar::Input<T>>
    : ScalarTraits<poplar::Input<T>, T, FieldDirection::Input> {};
template <typename T>
struct FieldTraits<poplar::Output<T>>
    : ScalarTraits<poplar::Output<T>, T, FieldDirection::Output> {};
template <typename T>
struct FieldTraits<poplar::InOut<T>>
    : ScalarTraits<poplar::InOut<T>, T, FieldDirection::InOut> {};

template <typename F, typename T, FieldDirection Direction>
struct VectorTraits {
  static constexpr FieldDirection direction = Direction;
  static constexpr unsigned depth = 1;
  static constexpr std::size_t elementBytes = 0;
  static unsigned type() { return ElementType<T>::id(); }
  static void bind(F &field, const Span *spans, std::size_t, void *) {
    field.set(static_cast<T *>(spans[0].data), spans[0].size);
  }
};
template <typename T, poplar::VectorLayout L, unsigned A, bool I>
struct FieldTraits<poplar::Input<poplar::Vector<T, L, A, I>>>
    : VectorTraits<poplar::Input<poplar::Vector<T, L, A, I>>, T,
                   FieldDirection::Input> {};
template <typename T, poplar::VectorLayout L, unsigned A, bool I>
struct FieldTraits<poplar::Output<poplar::Vector<T, L, A, I>>>
    : VectorTraits<poplar::Output<poplar::Vector<T, L, A, I>>, T,
                   FieldDirection::Output> {};
template <typename T, poplar::VectorLayout L, unsigned A, bool I>
struct FieldTraits<poplar::InOut<poplar::Vector<T, L, A, I>>>
    : VectorTraits<poplar::InOut<poplar::Vector<T, L, A, I>>, T,
                   FieldDirection::InOut> {};

// A Vector of numbers is state; a Vector of edges has one span per element.
template <typename V, typename Inner, bool IsState> struct OuterVectorTraits;
template <typename V, typename T>
struct OuterVectorTraits<V, T, true>
    : VectorTraits<V, T, FieldDirection::State> {};
template <typename V, typename Inner>
struct OuterVectorTraits<V, Inner, false> {
  static constexpr FieldDirection direction = FieldTraits<Inner>::direction;
  static constexpr unsigned depth = 2;
  static constexpr std::size_t elementBytes = sizeof(Inner);
  static unsigned type() { return FieldTraits<Inner>::type(); }
  static void bind(V &field, const Span *spans, std::size_t count,
                   void *arena) {
    auto *elements = static_cast<Inner *>(arena);
    for (std::size_t i = 0; i < count; ++i)
      FieldTraits<Inner>::bind(*new (elements + i) Inner(), spans + i, 1,
                               nullptr);
    field.set(elements, count);
  }
};
template <typename T, poplar::VectorLayout L, unsigned A, bool I>
struct FieldTraits<poplar::Vector<T, L, A, I>>
    : OuterVectorTraits<poplar::Vector<T, L, A, I>, T,
                        std::is_arithmetic<T>::value ||
                            std::is_same<T, half>::value> {};

template <typename V, typename F, F V::*Member>
void bindField(void *vertex, const Span *spans, std::size_t count,
               void *arena) {
  FieldTraits<F>::bind(static_cast<V *>(vertex)->*Member, spans, count, arena);
}

template <typename V, typename F, F V::*Member>
FieldDescriptor describeField(const char *name) {
  return {name,
          FieldTraits<F>::direction,
          FieldTraits<F>::type(),
          FieldTraits<F>::depth,
          FieldTraits<F>::elementBytes,
          &bindField<V, F, Member>};
}

template <typename V> void constructVertex(void *memory) { new (memory) V(); }

// compute() may return bool or nothing, and a MultiVertex is told its worker.
template <typename V>
auto callCompute(V &vertex, unsigned worker, int)
    -> decltype(vertex.compute(worker), true) {
  vertex.compute(worker);
  return true;
}
template <typename V>
auto callCompute(V &vertex, unsigned, long)
    -> decltype(vertex.compute(), true) {
  vertex.compute();
  return true;
}

template <typename V> bool computeVertex(void *vertex, unsigned worker) {
  return callCompute(*static_cast<V *>(vertex), worker, 0);
}

template <typename V>
VertexDescriptor describeVertex(const char *name, const FieldDescriptor *fields,
                                std::size_t fieldCount) {
  const unsigned workers =
      std::is_base_of<poplar::MultiVertex, V>::value ? 6 : 1;
  return {name,   sizeof(V), workers, &constructVertex<V>, &computeVertex<V>,
          fields, fieldCount};
}

} // namespace popemu
