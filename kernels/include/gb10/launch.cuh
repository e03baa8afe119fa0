// Launching a kernel so that it may start while the one before it ends (programmatic dependent launch, 9.0 and newer).
//
// A kernel launched here may read weights at once, but must call wait_for_previous() before it reads what an earlier kernel
// wrote (activations) and before it writes anything. release_next() lets a next kernel launched the same way begin; a next
// kernel launched the usual way waits for the end of this one whatever this one calls.
#pragma once

#include <cuda_runtime.h>

#include "arch.cuh"

namespace gb10 {

__device__ __forceinline__ void wait_for_previous() {
#if GB10_HW_DEPENDENTS
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void release_next() {
#if GB10_HW_DEPENDENTS
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launches and gives the error of the launch, or of the launch before it that nobody asked for.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_dependent(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                             cudaStream_t stream, bool overlap, Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  cudaError_t const status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return status != cudaSuccess ? status : cudaGetLastError();
}

}  // namespace gb10
