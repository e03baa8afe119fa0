// What the CPU tests of the kernels on split_k.cuh share.
#pragma once

#include <algorithm>

#include "gb10/block.h"

namespace host {

inline std::uint32_t ballot(bool vote) {
  static std::uint32_t votes[32];
  std::uint32_t& mine = votes[warp()];
  meet_warp();
  if (lane() == 0) mine = 0;
  meet_warp();
  mine |= std::uint32_t{vote} << lane();
  meet_warp();
  std::uint32_t const all = mine;
  meet_warp();
  return all;
}

}  // namespace host

#define __ballot_sync(mask, vote) host::ballot(vote)
#undef __grid_constant__
#define __grid_constant__

inline int __popc(std::uint32_t v) { return __builtin_popcount(v); }
inline void atomicMax(std::uint32_t* address, std::uint32_t value) { *address = std::max(*address, value); }
inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

template <typename T>
T __ldcg(T const* address) {
  return *address;
}

template <typename T>
T __ldg(T const* address) {
  return *address;
}

inline std::mt19937 random_bits(1);

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
