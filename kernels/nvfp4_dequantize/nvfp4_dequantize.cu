// The launch of nvfp4_dequantize.
#include <algorithm>

#include "gb10/device.h"
#include "nvfp4_dequantize.cuh"

namespace gb10::nvfp4_dequantize {

cudaError_t launch(Problem const& p, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  if (cudaError_t const status = current_device(device); status != cudaSuccess) return status;
  std::int64_t const pieces = static_cast<std::int64_t>(p.rows) * (p.k / kThreadK);
  int const blocks = static_cast<int>(std::min<std::int64_t>((pieces + kThreads - 1) / kThreads, 16 * device.sms));
  with_type(number, [&]<typename T>() {
    if (swizzled) dequantize<T, true><<<blocks, kThreads, 0, stream>>>(p);
    else dequantize<T, false><<<blocks, kThreads, 0, stream>>>(p);
  });
  return cudaGetLastError();
}

}  // namespace gb10::nvfp4_dequantize
