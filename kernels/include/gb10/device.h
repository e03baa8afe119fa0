// What a launch asks of a GPU: its SMs and its shared memory. Host code.
#pragma once

#include <algorithm>
#include <cstddef>

#include <cuda_runtime_api.h>

namespace gb10 {

struct Device {
  int sms;
  std::size_t block_shared_bytes;  // the most one block can have
  std::size_t sm_shared_bytes;     // all of an SM
};

inline constexpr std::size_t kReservedShared = 1024;  // what the system takes of a block's shared memory

inline cudaError_t device_at(int index, Device& device) {
  int sms = 0, block_shared = 0, sm_shared = 0;
  cudaError_t status = cudaSuccess;
  auto const ask = [&](int& value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, index);
  };
  ask(sms, cudaDevAttrMultiProcessorCount);
  ask(block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(sm_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  device = {sms, static_cast<std::size_t>(block_shared), static_cast<std::size_t>(sm_shared)};
  return status;
}

inline cudaError_t current_device(Device& device) {
  int index = 0;
  cudaError_t const status = cudaGetDevice(&index);
  return status != cudaSuccess ? status : device_at(index, device);
}

// How many blocks with `bytes` of shared memory an SM holds, at most `most`; 0 when a block cannot have so much.
constexpr int blocks_per_sm(Device const& device, std::size_t bytes, int most) {
  if (bytes > device.block_shared_bytes) return 0;
  return static_cast<int>(std::min<std::size_t>(most, device.sm_shared_bytes / (bytes + kReservedShared)));
}

// Lets a kernel have `bytes` of shared memory.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, Device const& device, std::size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  if (bytes > device.block_shared_bytes) return cudaErrorInvalidConfiguration;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device.block_shared_bytes));
}

}  // namespace gb10
