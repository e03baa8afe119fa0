// The kernel of add_norm.h: a block has a row, a thread up to kVectors vectors of it.
//
// From 9.0 on the weight is read before the kernel ahead in the stream has ended, so that kernel must not write it.
#pragma once

#include <cstdint>

#include "add_norm.h"
#include "gb10/ptx.cuh"
#include "gb10/vectors.cuh"

namespace gb10::add_norm {

// Grid: rows. Shared memory: a float for each warp.
template <typename T, int kVectors>
__global__ void __launch_bounds__(kThreads) add_norm(__grid_constant__ Arguments const p) {
  ptx::release_next();
  int const threads = blockDim.x, warps = threads / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int const vectors = p.columns / 8;
  auto const index = [&](int i) { return i * threads + static_cast<int>(threadIdx.x); };
  Vector<8> weight[kVectors], x[kVectors] = {}, residual[kVectors] = {};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (index(i) < vectors) ptx::load_ahead(*reinterpret_cast<uint4*>(&weight[i]), static_cast<uint4 const*>(p.weight) + index(i));
  }
  ptx::wait_for_previous();

  std::int64_t const row = static_cast<std::int64_t>(blockIdx.x) * vectors;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (index(i) >= vectors) continue;
    x[i] = static_cast<Vector<8> const*>(p.x)[row + index(i)];
    if (p.residual != nullptr) residual[i] = static_cast<Vector<8> const*>(p.residual)[row + index(i)];
  }
  float sum = 0.0f, values[kVectors][8];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float more[8];
    unpack<T>(x[i], values[i]);
    unpack<T>(residual[i], more);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[i][j] += more[j];
      sum = fmaf(values[i][j], values[i][j], sum);
    }
    if (p.residual_out != nullptr && index(i) < vectors) {
      static_cast<Vector<8>*>(p.residual_out)[row + index(i)] = pack<T>(values[i]);
    }
  }
  auto* const sums = reinterpret_cast<float*>(ptx::dynamic_shared());
  sum = sum_of_warp(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  float const scale = rsqrtf(sum_of_warp(lane < warps ? sums[lane] : 0.0f) / static_cast<float>(p.columns) + p.epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (index(i) >= vectors) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) values[i][j] *= scale;
    scale_norm<T>(values[i], weight[i], p.plus_one);
    static_cast<Vector<8>*>(p.normed)[row + index(i)] = pack<T>(values[i]);
  }
}

}  // namespace gb10::add_norm
