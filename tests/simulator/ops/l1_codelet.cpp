// Vertices of the L1 distance: a template, a multi-vertex and nested vectors.
// Then vertices with mistakes.
#include <cstdlib>
#include <poplar/Vertex.hpp>

using namespace poplar;

namespace probe {

template <typename T> class AbsoluteDifference : public MultiVertex {
public:
  Input<Vector<T>> a;
  Input<Vector<T>> b;
  Output<Vector<T>> out;

  bool compute(unsigned worker) {
    for (unsigned i = worker; i < out.size(); i += numWorkers()) {
      const T difference = a[i] - b[i];
      out[i] = difference < T(0) ? T(-difference) : difference;
    }
    return true;
  }
};

template class AbsoluteDifference<float>;
template class AbsoluteDifference<half>;

} // namespace probe

// sign(a - b) * gradient, with the sign of the result as state.
template <typename T> class SignedGradient : public Vertex {
public:
  Input<Vector<T>> a, b;
  Input<Vector<T>> gradient;
  Output<Vector<T>> out;
  float sign;

  bool compute() {
    for (unsigned i = 0; i < out.size(); ++i) {
      const float step = a[i] > b[i] ? 1.0f : a[i] < b[i] ? -1.0f : 0.0f;
      out[i] = T(sign * step * float(gradient[i]));
    }
    return true;
  }
};

template class SignedGradient<float>;
template class SignedGradient<half>;

class RowSums : public Vertex {
public:
  Vector<Input<Vector<float>>> rows;
  Output<Vector<float>> sums;

  bool compute() {
    for (unsigned r = 0; r < rows.size(); ++r) {
      float sum = 0.0f;
      for (float x : rows[r])
        sum += x;
      sums[r] = sum;
    }
    return true;
  }
};

class Overrun : public Vertex {
public:
  Output<Vector<float>> out;
  bool compute() {
    for (unsigned i = 0; i < out.size() + 4; ++i)
      out[i] = 1.0f;
    return true;
  }
};

// Works `after` times, then ends the process.
class Ending : public Vertex {
public:
  Output<Vector<float>> out;
  int after;
  bool byExit;

  bool compute() {
    static int calls = 0;
    out[0] = 1.0f;
    if (calls++ < after)
      return true;
    if (byExit)
      std::exit(0);
    volatile float *volatile nowhere = nullptr;
    *nowhere = 1.0f;
    return true;
  }
};
