// What codelets are written against. Fields are spans; the runtime points them
// at memory before compute() is called.
#pragma once

#include <cstddef>
#include <type_traits>

#include <poplar/HalfFloat.hpp>

namespace poplar {

enum class VectorLayout {
  NOT_APPLICABLE,
  SPAN,
  ONE_PTR,
  SCALED_PTR32,
  SCALED_PTR64,
  SCALED_PTR128,
  COMPACT_PTR
};

enum class VectorListLayout {
  ONE_PTR,
  SCALED_PTR32,
  SCALED_PTR64,
  SCALED_PTR128,
  COMPACT_DELTAN,
  DELTANELEMENTS,
  DELTAN
};

class Vertex {};

class MultiVertex {
public:
  static constexpr unsigned numWorkers() { return 6; }
};

class SupervisorVertex {};

template <bool> class SupervisorVertexIf : public SupervisorVertex {};

template <typename T, VectorLayout Layout = VectorLayout::SPAN,
          unsigned Alignment = 0, bool Interleaved = false>
class Vector {
public:
  using value_type = T;
  T &operator[](std::size_t i) const { return data_[i]; }
  std::size_t size() const { return size_; }
  T *begin() const { return data_; }
  T *end() const { return data_ + size_; }
  T *data() const { return data_; }
  T &front() const { return data_[0]; }
  T &back() const { return data_[size_ - 1]; }
  void set(T *data, std::size_t size) {
    data_ = data;
    size_ = size;
  }

private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

// One element behind a pointer; `const` for inputs.
template <typename T> class Scalar {
public:
  T &operator*() const { return *value_; }
  operator T &() const { return *value_; }
  T *operator->() const { return value_; }
  void set(T *value) { value_ = value; }

protected:
  T *value_ = nullptr;
};

template <typename T> class WritableScalar : public Scalar<T> {
public:
  WritableScalar &operator=(T value) {
    *this->value_ = value;
    return *this;
  }
};

} // namespace detail

template <typename T> class Input : public detail::Scalar<const T> {};
template <typename T> class Output : public detail::WritableScalar<T> {
public:
  using detail::WritableScalar<T>::operator=;
};
template <typename T> class InOut : public detail::WritableScalar<T> {
public:
  using detail::WritableScalar<T>::operator=;
};

template <typename T, VectorLayout L, unsigned A, bool I>
class Input<Vector<T, L, A, I>> : public Vector<const T, L, A, I> {};
template <typename T, VectorLayout L, unsigned A, bool I>
class Output<Vector<T, L, A, I>> : public Vector<T, L, A, I> {};
template <typename T, VectorLayout L, unsigned A, bool I>
class InOut<Vector<T, L, A, I>> : public Vector<T, L, A, I> {};

} // namespace poplar
