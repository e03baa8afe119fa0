// The host's side of fp8_gemv.cuh: what a launch needs.
#pragma once

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::fp8_gemv {

inline constexpr int kColumnUnit = 64;  // K is a multiple of this
inline constexpr int kMaxColumns = 1 << 20;
inline constexpr int kMaxRows = 1 << 30;
inline constexpr int kScaleBlock = 128;  // rows and columns of a block scale

enum class Scaling { kRow, kBlock };

struct Arguments {
  void const* x;        // [tokens, columns], 16-byte aligned
  void const* weight;   // e4m3 [rows, columns], 16-byte aligned
  float const* scales;  // [rows], or [ceil(rows / 128), ceil(columns / 128)]
  void const* bias;     // [rows] or null
  void* out;            // [tokens, rows]
  int tokens;
  int rows;
  int columns;
};

// Launches on `stream` of the current device; gives the first CUDA error.
cudaError_t launch(Arguments const& arguments, Number number, Scaling scaling, cudaStream_t stream);

}  // namespace gb10::fp8_gemv
