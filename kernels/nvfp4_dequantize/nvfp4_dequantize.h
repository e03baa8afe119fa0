// An NVFP4 weight as numbers of 16 bits, at the speed of memory: out[n, k] = e2m1 * block_scale (* factor).
//
// Without factors the result is exact in bf16 and in f16 (6 significant bits). With them it is rounded once: to the product in FP32
// of block scale and factor with the code. Weight and block scales: as in nvfp4_gemv.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::nvfp4_dequantize {

inline constexpr int kUnitK = 64;

struct Problem {
  std::uint8_t const* weight;  // [rows, k / 2]
  std::uint8_t const* scales;  // [rows, k / 16], linear or swizzled
  float const* factors;        // [factor_rows], or nullptr
  void* out;                   // [rows, k]
  int rows, k, factor_rows;    // factor_rows: rows, or 1
};

cudaError_t launch(Problem const& problem, Number number, bool swizzled, cudaStream_t stream);

}  // namespace gb10::nvfp4_dequantize
