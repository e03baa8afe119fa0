// Random numbers for the tests of kernels on the CPU, what codes stand for, and when a product is right.
#pragma once

#include "block.h"

inline std::mt19937 random_bits(1);

inline double uniform(double low, double high) { return low + (high - low) * (random_bits() / 4294967296.0); }

inline double e2m1(int code) {
  constexpr double magnitude[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -magnitude[code & 7] : magnitude[code & 7];
}

inline double e4m3(int byte) {
  int const exponent = byte >> 3 & 15, mantissa = byte & 7;
  double const magnitude = exponent ? std::ldexp(1 + mantissa / 8.0, exponent - 7) : std::ldexp(mantissa, -9);
  return byte & 0x80 ? -magnitude : magnitude;
}

template <typename T>
std::vector<T> random_numbers(std::size_t count) {
  std::normal_distribution<float> normal;
  std::vector<T> numbers(count);
  for (auto& number : numbers) number = T(normal(random_bits));
  return numbers;
}

// Whether `out` is within half a step of T and the loss of FP32 sums. `weight` is [rows, k]; bias may be empty.
template <typename T>
bool right(std::vector<T> const& out, std::vector<T> const& x, std::vector<double> const& weight, std::vector<T> const& bias,
           int tokens, int rows, int k) {
  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
  for (int token = 0; token < tokens; ++token) {
    for (int row = 0; row < rows; ++row) {
      double sum = 0, magnitude = 0;
      for (int i = 0; i < k; ++i) {
        double const product = double{float(x[std::size_t(token) * k + i])} * weight[std::size_t(row) * k + i];
        sum += product;
        magnitude += std::abs(product);
      }
      if (!bias.empty()) sum += float(bias[row]);
      double const is = float(out[std::size_t(token) * rows + row]);
      if (!(std::abs(is - sum) <= std::abs(sum) * step + magnitude * 1e-5 + 1e-7)) {
        std::printf("token %d row %d is %g, not %g\n", token, row, is, sum);
        return false;
      }
    }
  }
  return true;
}
