// What a launch asks of a GPU: its SMs and its shared memory. Host code.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <mutex>

#include <cuda_runtime_api.h>

namespace gb10 {

struct Device {
  int sms;
  std::size_t block_shared_bytes;  // the most one block can have
  std::size_t sm_shared_bytes;     // all of an SM
  int index;
  int capability;  // 90: 9.0
};

inline constexpr int kMostDevices = 64;
inline constexpr std::size_t kReservedShared = 1024;  // what the system takes of a block's shared memory

// The current device, asked once.
inline cudaError_t current_device(Device& device) {
  static std::mutex mutex;
  static std::array<Device, kMostDevices> known{};
  int index = 0, sms = 0, block_shared = 0, sm_shared = 0, major = 0, minor = 0;
  if (cudaError_t const status = cudaGetDevice(&index); status != cudaSuccess) return status;
  if (index >= kMostDevices) return cudaErrorInvalidDevice;
  std::lock_guard const lock(mutex);
  if (known[index].sms == 0) {
    cudaError_t status = cudaSuccess;
    auto const ask = [&](int& value, cudaDeviceAttr attribute) {
      if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, index);
    };
    ask(block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(sm_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(sms, cudaDevAttrMultiProcessorCount);
    ask(major, cudaDevAttrComputeCapabilityMajor);
    ask(minor, cudaDevAttrComputeCapabilityMinor);
    if (status != cudaSuccess) return status;
    known[index] = {sms, static_cast<std::size_t>(block_shared), static_cast<std::size_t>(sm_shared), index, 10 * major + minor};
  }
  device = known[index];
  return cudaSuccess;
}

// How many blocks with `bytes` of shared memory an SM holds, at most `most`; 0 when a block cannot have so much.
constexpr int blocks_per_sm(Device const& device, std::size_t bytes, int most) {
  if (bytes > device.block_shared_bytes) return 0;
  return static_cast<int>(std::min<std::size_t>(most, device.sm_shared_bytes / (bytes + kReservedShared)));
}

constexpr int divide_up(int a, int b) { return a / b + (a % b != 0); }

}  // namespace gb10
