// The launch of the W4A16 GEMV, for ops.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include "gb10/types.h"
#include "plan.h"

namespace gb10::nvfp4_gemv {

// Runs on the current device. Everything in `problem` has been checked.
cudaError_t launch(Problem const& problem, Number number, bool swizzled, cudaStream_t stream);

}  // namespace gb10::nvfp4_gemv
