// What the torch operators ask of the quantisation kernels.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::quantize {

enum class Layout {
  kLinear,    // scales [rows, K / 16]
  kSwizzled,  // scales in the 128x4 layout, all rows together
  kExperts,   // scales in the 128x4 layout, the rows of each expert from a multiple of 128 on
};

struct Problem {
  void const* x;                       // [rows, K], or [rows, 2 K] when gated; at a multiple of 16 bytes
  float const* global_scales;          // one number, or one for each expert
  std::uint8_t* packed;                // [rows, K / 2], at a multiple of 8 bytes
  std::uint8_t* scales;                // at a multiple of 4 bytes for the 128x4 layout
  std::int32_t const* expert_offsets;  // kExperts: [experts + 1], the first row of each expert
  std::int32_t const* scale_offsets;   // kExperts: [experts + 1], the first row of each expert's scales
  std::int32_t rows;
  std::int32_t scale_rows;  // rows of `scales`: for the 128x4 layout a multiple of 128
  std::int32_t columns;     // K / 16; at most 2^20
  std::int32_t experts;
};

// Needs rows and scale_rows within 1..2^31 - 257 and columns > 0. kExperts is never gated. Gives the error of the launch.
cudaError_t launch(Problem const& problem, Number number, Layout layout, bool gated, cudaStream_t stream);

}  // namespace gb10::quantize
