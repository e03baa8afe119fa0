#include "bandwidth.cuh"

#include "bandwidth.h"

namespace gb10::bandwidth {

cudaError_t launch(void const* x, std::int64_t words, void* out, int blocks, cudaStream_t stream) {
  read<<<blocks, kThreads, 0, stream>>>(static_cast<uint4 const*>(x), words, static_cast<std::uint32_t*>(out));
  return cudaGetLastError();
}

}  // namespace gb10::bandwidth
