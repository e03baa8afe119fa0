// The kernel of nvfp4_search.h: a block of threads for a row, a thread for a block of values.
#pragma once

#include <cstdint>

#include "gb10/e2m1.cuh"
#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "gb10/ue4m3.cuh"
#include "nvfp4_search.h"

namespace gb10::nvfp4_search {

inline constexpr int kThreads = 128, kWarps = kThreads / 32;
inline constexpr int kSharedBytes = 2 * kWarps * sizeof(double);
inline constexpr std::uint32_t kFirst = 0x01, kLast = 0x7E;  // the smallest positive and the largest E4M3 number

// The n-th offset from the middle, outwards and first below: 0, -1, 1, -2, ...; then those that exist above alone.
__device__ constexpr int offset_of(int n) { return n > 2 * kBelow ? n - kBelow : n % 2 ? -(n + 1) / 2 : n / 2; }

// Adds up squares, neighbours first.
__device__ __forceinline__ float sum_of(float (&squares)[kBlock]) {
#pragma unroll
  for (int step = 1; step < kBlock; step *= 2) {
#pragma unroll
    for (int i = 0; i < kBlock; i += 2 * step) squares[i] = __fadd_rn(squares[i], squares[i + step]);
  }
  return squares[0];
}

struct Rounded {
  std::uint32_t codes[2];
  float error;
};

__device__ __forceinline__ Rounded rounded(float const (&v)[kBlock], float step) {
  Rounded out;
  float squares[kBlock];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float quotients[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) quotients[i] = __fdiv_rn(v[8 * half + i], step);
    out.codes[half] = e2m1::encode8(quotients);
    std::uint32_t pairs[4];
    e2m1::decode8_f16(out.codes[half], pairs);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float2 const two = floats_of<__half>(pairs[i / 2]);
      float const difference = __fsub_rn(__fmul_rn(i % 2 ? two.y : two.x, step), v[8 * half + i]);
      squares[8 * half + i] = __fmul_rn(difference, difference);
    }
  }
  out.error = sum_of(squares);
  return out;
}

// Grid: rows. Shared memory: kSharedBytes.
template <typename T>
__global__ void __launch_bounds__(kThreads) search(__grid_constant__ Problem const p) {
  int const thread = threadIdx.x;
  std::int64_t const row = blockIdx.x;
  float const global = *p.global_scale;
  double difference = 0, norm = 0;
#pragma unroll 1
  for (int column = thread; column < p.columns; column += kThreads) {
    std::int64_t const block = row * p.columns + column;
    uint4 const* const from = static_cast<uint4 const*>(p.weight) + 2 * block;
    float v[kBlock], squares[kBlock], largest = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 const eight = from[half];
      std::uint32_t const words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float2 const two = floats_of<T>(words[i / 2]);
        v[8 * half + i] = i % 2 ? two.y : two.x;
      }
    }
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      largest = fmaxf(largest, fabsf(v[i]));
      squares[i] = __fmul_rn(v[i], v[i]);
    }
    float const wanted = __fdiv_rn(largest, __fmul_rn(e2m1::kMaximum, global));
    int const middle = static_cast<int>(ue4m3::encode(fminf(fmaxf(wanted, ue4m3::kMinimum), ue4m3::kMaximum)));
    std::uint32_t best = middle;
    Rounded least = rounded(v, __fmul_rn(ue4m3::decode_finite(best), global));
#pragma unroll 1
    for (int n = 1; n <= kBelow + kAbove; ++n) {
      std::uint32_t const tried = min(max(middle + offset_of(n), static_cast<int>(kFirst)), static_cast<int>(kLast));
      Rounded const found = rounded(v, __fmul_rn(ue4m3::decode_finite(tried), global));
      if (found.error < least.error) {
        least = found;
        best = tried;
      }
    }
    reinterpret_cast<uint2*>(p.codes)[block] = {least.codes[0], least.codes[1]};
    p.scales[block] = static_cast<std::uint8_t>(best);
    difference += least.error;
    norm += sum_of(squares);
  }

  auto* const sums = reinterpret_cast<double*>(ptx::dynamic_shared());  // of both, for each warp
#pragma unroll
  for (int step = 16; step; step /= 2) {
    difference += __shfl_xor_sync(~0u, difference, step);
    norm += __shfl_xor_sync(~0u, norm, step);
  }
  if (thread % 32 == 0) {
    sums[thread / 32] = difference;
    sums[kWarps + thread / 32] = norm;
  }
  __syncthreads();
  if (thread < 2) {
    double sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[thread * kWarps + warp];
    p.squares[2 * row + thread] = sum;
  }
}

}  // namespace gb10::nvfp4_search
