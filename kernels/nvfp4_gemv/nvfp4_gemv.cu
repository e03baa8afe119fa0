#include "nvfp4_gemv.cuh"

#include <array>
#include <mutex>

#include "nvfp4_gemv.h"

namespace gb10::nvfp4_gemv {
namespace {

using Kernel = void (*)(Problem);

template <typename T>
Kernel choose_kernel(bool many, bool swizzled) {
  if (many) return swizzled ? gemv<T, 2, true> : gemv<T, 2, false>;
  return swizzled ? gemv<T, 1, true> : gemv<T, 1, false>;
}

Kernel choose_kernel(Type type, bool many, bool swizzled) {
  return type == Type::kHalf ? choose_kernel<__half>(many, swizzled) : choose_kernel<__nv_bfloat16>(many, swizzled);
}

// What a device has, and leave for every kernel to use all of its shared memory.
cudaError_t prepare(int index, Device& device) {
  cudaError_t status = device_at(index, device);
  int const most = static_cast<int>(device.block_shared_bytes);
  for (Type type : {Type::kBfloat16, Type::kHalf}) {
    for (bool many : {false, true}) {
      for (bool swizzled : {false, true}) {
        if (status != cudaSuccess) return status;
        status = cudaFuncSetAttribute(choose_kernel(type, many, swizzled), cudaFuncAttributeMaxDynamicSharedMemorySize, most);
      }
    }
  }
  return status;
}

// The device with this index, asked once.
cudaError_t properties(int index, Device& device) {
  static std::mutex mutex;
  static std::array<Device, 64> known{};
  if (index < 0 || index >= static_cast<int>(known.size())) return cudaErrorInvalidDevice;
  std::lock_guard<std::mutex> const lock(mutex);
  if (known[index].sms == 0) {
    Device fresh{};
    cudaError_t const status = prepare(index, fresh);
    if (status != cudaSuccess) return status;
    known[index] = fresh;
  }
  device = known[index];
  return cudaSuccess;
}

}  // namespace

cudaError_t launch(Problem const& problem, Type type, bool swizzled, int index, cudaStream_t stream) {
  Device device{};
  cudaError_t status = properties(index, device);
  if (status != cudaSuccess) return status;
  Plan const plan = choose(problem.tokens, problem.rows, problem.k, x_stride(problem.k) * std::size_t{2}, device);
  for (int first = 0; first < problem.tokens && status == cudaSuccess; first += plan.tokens) {
    Problem part = problem;
    part.tokens = std::min(plan.tokens, problem.tokens - first);
    part.x = static_cast<std::uint16_t const*>(problem.x) + static_cast<std::size_t>(first) * problem.k;
    part.out = static_cast<std::uint16_t*>(problem.out) + static_cast<std::size_t>(first) * problem.rows;
    status = launch_dependent(choose_kernel(type, part.tokens > 8, swizzled), dim3(plan.blocks),
                              dim3(32 * plan.slices, plan.teams), plan.shared_bytes, stream, true, part);
  }
  return status;
}

}  // namespace gb10::nvfp4_gemv
