// Residual + RMSNorm of any number of rows, in one launch. Host's side.
//
//   r      = x + residual                                          (r = x without a residual)
//   normed = r / sqrt(mean of r^2 + epsilon) * (weight + 1)        rounded to the dtype; without norm_plus_one rounded, times
//                                                                  weight, rounded
//   residual_out = r rounded to the dtype
// The norm is of r as FP32, as vLLM's fused_add_rms_norm computes it.
#pragma once

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::add_norm {

inline constexpr int kColumnUnit = 8;
inline constexpr int kMaxColumns = 16384;
inline constexpr int kThreads = 256;  // of a block, at most

struct Arguments {
  void const* x;         // [rows, columns]
  void const* residual;  // or null
  void const* weight;    // [columns]
  void* normed;
  void* residual_out;  // or null
  int rows, columns;
  float epsilon;
  bool plus_one;
};

// Launches on `stream` of the current device; gives the first CUDA error.
cudaError_t launch(Arguments const& arguments, Number number, cudaStream_t stream);

}  // namespace gb10::add_norm
