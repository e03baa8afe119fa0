// The launch of the reading kernel, for ops.cpp.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace gb10::bandwidth {

// words: 16 bytes each; blocks: how many numbers `out` holds.
cudaError_t launch(void const* x, std::int64_t words, void* out, int blocks, cudaStream_t stream);

}  // namespace gb10::bandwidth
