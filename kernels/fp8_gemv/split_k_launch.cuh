// Choosing the number of warps for the loop of split_k.cuh on the current device.
#pragma once

#include <algorithm>
#include <cstddef>

#include "gb10/device.h"
#include "gb10/launch.cuh"
#include "split_k.cuh"

namespace gb10::split_k {

// Whether kSmWarps / warps blocks with `bytes` of shared memory live on one SM together.
inline bool fits(Device const& device, int warps, std::size_t bytes) {
  int const wanted = kSmWarps / warps;
  return blocks_per_sm(device, bytes, wanted) == wanted;
}

// Whether blocks of so many warps fill the GPU. The fewest warps that do are best: short tiles balance.
inline bool fills(Device const& device, int warps, int tiles) { return tiles >= device.sms * (kSmWarps / warps); }

template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), Device const& device, int warps, std::size_t bytes, int tiles, cudaStream_t stream,
                   Arguments const& arguments) {
  if (cudaError_t const status = allow_shared(kernel, device); status != cudaSuccess) return status;
  int const blocks = std::min(tiles, device.sms * (kSmWarps / warps));
  return launch_dependent(kernel, dim3(blocks), dim3(32 * warps), bytes, stream, arguments);
}

}  // namespace gb10::split_k
