// A weight of 16 bits to NVFP4 with searched block scales, in one launch: gb10.nvfp4.search (Python), bit for bit.
//
// Each block of 16 values tries the E4M3 numbers near amax / 6 and takes the one whose rounded values lie nearest to the given ones;
// of equally good ones that nearest to amax / 6. All of it in FP32, each operation rounded by itself and in Python's order.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::nvfp4_search {

inline constexpr int kBlock = 16;             // values that share a scale
inline constexpr int kBelow = 3, kAbove = 6;  // E4M3 numbers below and above amax / 6 that are tried: those of search.py

struct Problem {
  void const* weight;         // [rows, columns * kBlock], finite numbers
  float const* global_scale;  // one positive number
  std::uint8_t* codes;        // [rows, columns * kBlock / 2]
  std::uint8_t* scales;       // [rows, columns], E4M3
  double* squares;            // [rows, 2]: the sums of the squared differences, and of the squares
  int rows, columns;
};

cudaError_t launch(Problem const& problem, Number number, cudaStream_t stream);

}  // namespace gb10::nvfp4_search
