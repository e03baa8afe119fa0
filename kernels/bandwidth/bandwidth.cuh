// Reads memory as fast as the GPU can, and proves it: the exclusive or of all 32-bit words.
//
//   out[block] = xor of the words that this block read;  the xor of out is the xor of x
//
// x is a row of 16-byte words, out has one int32 a block. Threads of the whole grid read neighbouring words, each thread keeps
// kInFlight loads of 16 bytes on their way; nothing is written but out. This is the ceiling that other kernels are measured by.
//
// Needs sm_80 or newer.
#pragma once

#include <cstdint>

#include "gb10/ptx.cuh"

namespace gb10::bandwidth {

inline constexpr int kThreads = 512;
inline constexpr int kInFlight = 4;

__global__ __launch_bounds__(kThreads) void read(uint4 const* __restrict__ x, std::int64_t words, std::uint32_t* out) {
  std::int64_t const step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  std::uint32_t sum = 0;
  for (; at + (kInFlight - 1) * step < words; at += kInFlight * step) {
    uint4 v[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) ptx::load_stream(v[i], x + at + i * step);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  for (; at < words; at += step) {
    uint4 v;
    ptx::load_stream(v, x + at);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }

  __shared__ std::uint32_t sums[kThreads / 32];
  sum = __reduce_xor_sync(0xFFFFFFFFu, sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = __reduce_xor_sync(0xFFFFFFFFu, threadIdx.x < kThreads / 32 ? sums[threadIdx.x] : 0u);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

}  // namespace gb10::bandwidth
