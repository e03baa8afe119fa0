// An NVFP4 weight as numbers of 16 bits, at the speed of memory: out[n, k] = e2m1 * block_scale (* row_scale[n]).
//
// Without row scales the result is exact in bf16 and in f16 (6 significant bits); the global scale is left to the multiplication
// that follows. With them it is rounded once. Weight and block scales: as in nvfp4_gemv.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::nvfp4_dequantize {

inline constexpr int kUnitK = 64;

struct Problem {
  std::uint8_t const* weight;  // [rows, k / 2]
  std::uint8_t const* scales;  // [rows, k / 16], linear or swizzled
  float const* row_scales;     // [rows], or nullptr
  void* out;                   // [rows, k]
  int rows, k;
};

cudaError_t launch(Problem const& problem, Number number, bool swizzled, cudaStream_t stream);

}  // namespace gb10::nvfp4_dequantize
