// The launch of nvfp4_dequantize.
#include <algorithm>

#include "gb10/device.h"
#include "nvfp4_dequantize.cuh"

namespace gb10::nvfp4_dequantize {

cudaError_t launch(Problem const& p, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  if (cudaError_t const status = current_device(device); status != cudaSuccess) return status;
  int const blocks = std::min(divide_up(p.rows, rows_at_once(p.k, kThreads)), 16 * device.sms);
  with_type(number, [&]<typename T>() {
    if (swizzled) dequantize<T, true><<<blocks, kThreads, 0, stream>>>(p);
    else dequantize<T, false><<<blocks, kThreads, 0, stream>>>(p);
  });
  return cudaGetLastError();
}

}  // namespace gb10::nvfp4_dequantize
