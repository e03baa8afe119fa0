// Choosing the number of warps for the loop of split_k.cuh on the current device.
#pragma once

#include <algorithm>
#include <cstddef>

#include <cuda_runtime_api.h>

#include "gb10/launch.cuh"
#include "split_k.cuh"

namespace gb10::split_k {

struct Device {
  int sms;
  std::size_t sm_shared_bytes;     // all of an SM
  std::size_t block_shared_bytes;  // the most one block can have
};

inline cudaError_t current_device(Device& device) {
  int index = 0, sms = 0, sm_shared = 0, block_shared = 0;
  cudaError_t status = cudaGetDevice(&index);
  auto const ask = [&](int& value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, index);
  };
  ask(sms, cudaDevAttrMultiProcessorCount);
  ask(sm_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device = {sms, static_cast<std::size_t>(sm_shared), static_cast<std::size_t>(block_shared)};
  return status;
}

inline constexpr std::size_t kReservedShared = 1024;  // what the system takes of a block's shared memory

// Whether kSmWarps / warps blocks with `bytes` of shared memory live on one SM together.
inline bool fits(Device const& device, int warps, std::size_t bytes) {
  return bytes <= device.block_shared_bytes && (bytes + kReservedShared) * (kSmWarps / warps) <= device.sm_shared_bytes;
}

// Whether blocks of so many warps fill the GPU. The fewest warps that do are best: short tiles balance.
inline bool fills(Device const& device, int warps, int tiles) { return tiles >= device.sms * (kSmWarps / warps); }

template <typename Kernel, typename... Arguments>
cudaError_t launch(Kernel* kernel, Device const& device, int warps, std::size_t bytes, int tiles, cudaStream_t stream,
                   Arguments... arguments) {
  if (bytes > 48 * 1024) {
    cudaError_t const status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(device.block_shared_bytes));
    if (status != cudaSuccess) return status;
  }
  int const blocks = std::min(tiles, device.sms * (kSmWarps / warps));
  return launch_dependent(kernel, dim3(blocks), dim3(32 * warps), bytes, stream, true, arguments...);
}

}  // namespace gb10::split_k
