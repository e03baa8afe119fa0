// Launching a kernel so that it may start while the one before it ends (programmatic dependent launch, 9.0 and newer).
//
// A kernel launched here may read weights at once, but must call ptx::wait_for_previous() before it reads what an earlier kernel
// wrote (activations) and before it writes anything. ptx::release_next() lets a next kernel launched the same way begin; a next
// kernel launched the usual way waits for the end of this one whatever this one calls.
#pragma once

#include <mutex>
#include <set>
#include <utility>

#include <cuda_runtime.h>

#include "gb10/device.h"

namespace gb10 {

// Lets a kernel have all the shared memory that a block can have, and with a `carveout` sets the split of L1. Once for a kernel
// and a device.
template <typename... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...), Device const& device,
                         cudaSharedCarveout carveout = cudaSharedmemCarveoutDefault) {
  static std::mutex mutex;
  static std::set<std::pair<int, void (*)(Parameters...)>> allowed;
  std::lock_guard const lock(mutex);
  if (allowed.contains({device.index, kernel})) return cudaSuccess;
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device.block_shared_bytes));
  if (status == cudaSuccess && carveout != cudaSharedmemCarveoutDefault) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, carveout);
  }
  if (status == cudaSuccess) allowed.emplace(device.index, kernel);
  return status;
}

// Launches and gives the error of the launch, or of the launch before it that nobody asked for. The blocks of a cluster, which
// divides the grid, run at the same time near each other.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_dependent_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 cluster, dim3 block, std::size_t shared_bytes,
                                      cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
  cudaError_t const status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return status != cudaSuccess ? status : cudaGetLastError();
}

// The same without clusters.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_dependent(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                             Arguments... arguments) {
  return launch_dependent_clusters(kernel, grid, dim3(1), block, shared_bytes, stream, arguments...);
}

}  // namespace gb10
