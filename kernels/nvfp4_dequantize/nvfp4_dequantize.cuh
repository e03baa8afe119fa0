// The kernel of nvfp4_dequantize: a thread makes 8 numbers at a time.
#pragma once

#include <cstdint>

#include "gb10/e2m1.cuh"
#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "gb10/ue4m3.cuh"
#include "gb10/w4a16.cuh"
#include "nvfp4_dequantize.h"

namespace gb10::nvfp4_dequantize {

inline constexpr int kThreads = 256;
inline constexpr int kPieceK = 8;

// Rows that the threads of a block have at a time, neighbours a piece of 8 each, so that a warp writes whole lines.
__host__ __device__ constexpr int rows_at_once(int k, int threads) { return k / kPieceK < threads ? threads / (k / kPieceK) : 1; }

template <typename T, bool kSwizzled>
__global__ void __launch_bounds__(kThreads) dequantize(__grid_constant__ Problem const p) {
  int const threads = blockDim.x, pieces = p.k / kPieceK, at_once = rows_at_once(p.k, threads);
  int const first = at_once == 1 ? 0 : static_cast<int>(threadIdx.x) / pieces;
  if (first >= at_once) return;
  std::int64_t const step = static_cast<std::int64_t>(gridDim.x) * at_once;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * at_once + first; row < p.rows; row += step) {
    std::uint32_t const* const codes = reinterpret_cast<std::uint32_t const*>(p.weight) + row * pieces;
    uint4* const to = static_cast<uint4*>(p.out) + row * pieces;
    float const factor = p.factors ? p.factors[p.factor_rows == 1 ? 0 : row] : 1.0f;
#pragma unroll 2
    for (int piece = static_cast<int>(threadIdx.x) - first * pieces; piece < pieces; piece += threads) {
      int const column = piece / 2;
      float const scale =
          ue4m3::decode(p.scales[w4a16::scale_offset<kSwizzled>(static_cast<int>(row), column / 4 * 4, p.k / 16) + column % 4]) *
          factor;
      std::uint32_t halves[4];
      e2m1::decode8_f16(codes[piece], halves);
#pragma unroll
      for (std::uint32_t& pair : halves) {
        float2 const two = floats_of<__half>(pair);
        pair = word_of_floats<T>(two.x * scale, two.y * scale);
      }
      to[piece] = {halves[0], halves[1], halves[2], halves[3]};
    }
  }
}

}  // namespace gb10::nvfp4_dequantize
