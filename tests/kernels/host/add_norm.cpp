// The kernel of kernels/add_norm on the CPU, against float64.
#include "numbers.h"

#include "add_norm/add_norm.cuh"

namespace {

namespace norm = gb10::add_norm;

int runs = 0, wrong = 0;

template <typename T>
double rounded(double x) {
  return float(T(float(x)));
}

template <typename T, int kVectors>
void check(int rows, int columns, int threads, bool with_residual, bool plus_one) {
  auto const x = random_numbers<T>(rows * columns), residual = random_numbers<T>(rows * columns);
  auto const weight = random_numbers<T>(columns);
  std::vector<T> normed(rows * columns), total(rows * columns);
  std::memset(static_cast<void*>(normed.data()), 0xFF, normed.size() * sizeof(T));
  std::memset(static_cast<void*>(total.data()), 0xFF, total.size() * sizeof(T));
  norm::Arguments p{};
  p.x = x.data(), p.residual = with_residual ? residual.data() : nullptr, p.weight = weight.data();
  p.normed = normed.data(), p.residual_out = with_residual ? total.data() : nullptr;
  p.rows = rows, p.columns = columns, p.epsilon = 1e-6f, p.plus_one = plus_one;
  host::run({unsigned(rows), 1, 1}, {unsigned(threads), 1, 1}, 32 * sizeof(float), [&] { norm::add_norm<T, kVectors>(p); });
  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
  bool right = true;
  for (int row = 0; row < rows; ++row) {
    std::vector<double> sum(columns);
    double squares = 0;
    for (int i = 0; i < columns; ++i) {
      sum[i] = double{float(x[row * columns + i])} + (with_residual ? float(residual[row * columns + i]) : 0.0);
      squares += sum[i] * sum[i];
    }
    for (int i = 0; i < columns; ++i) {
      double const scaled = sum[i] / std::sqrt(squares / columns + 1e-6);
      double const wanted = plus_one ? scaled * (1.0 + float(weight[i])) : scaled * float(weight[i]);
      double const is = float(normed[row * columns + i]);
      // Half a step of T for each rounding.
      right = right && std::abs(is - wanted) <= (plus_one ? 1.02 : 2.04) * step * std::abs(wanted) + 1e-6;
      if (with_residual) right = right && float(total[row * columns + i]) == rounded<T>(sum[i]);
    }
  }
  ++runs;
  if (right) return;
  ++wrong;
  std::printf("%d rows of %d, %d threads, residual %d, plus one %d\n", rows, columns, threads, with_residual, plus_one);
}

template <typename T>
void check_all() {
  for (bool const residual : {true, false}) {
    for (bool const plus_one : {true, false}) {
      check<T, 1>(2, 256, 32, residual, plus_one);
      check<T, 1>(1, 2048, 256, residual, plus_one);
      check<T, 2>(1, 2056, 256, residual, plus_one);
      check<T, 8>(1, 12288, 256, residual, plus_one);
    }
  }
}

}  // namespace

int main() {
  check_all<__nv_bfloat16>();
  check_all<__half>();
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
