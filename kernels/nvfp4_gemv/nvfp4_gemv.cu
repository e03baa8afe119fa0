// Which instance of nvfp4_gemv.cuh serves a call, and its launches.
#include "nvfp4_gemv.cuh"

#include "gb10/launch.cuh"
#include "nvfp4_gemv.h"

namespace gb10::nvfp4_gemv {
namespace {

using Kernel = void (*)(Problem);

template <typename T, bool kSwizzled>
Kernel choose_kernel(bool many, bool ahead) {
  if (many) return gemv<T, 2, kSwizzled, false>;
  return ahead ? gemv<T, 1, kSwizzled, true> : gemv<T, 1, kSwizzled, false>;
}

Kernel choose_kernel(Number number, bool swizzled, bool many, bool ahead) {
  return with_type(number, [=]<typename T>() -> Kernel {
    return swizzled ? choose_kernel<T, true>(many, ahead) : choose_kernel<T, false>(many, ahead);
  });
}

}  // namespace

cudaError_t launch(Problem const& problem, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  if (status != cudaSuccess) return status;
  Plan const plan = choose(problem.tokens, problem.rows, problem.k, x_stride(problem.k) * std::size_t{2}, device);
  for (int first = 0; first < problem.tokens && status == cudaSuccess; first += plan.tokens) {
    Problem part = problem;
    part.sets = plan.sets;
    part.tokens = std::min(plan.tokens, problem.tokens - first);
    part.x = static_cast<std::uint16_t const*>(problem.x) + static_cast<std::size_t>(first) * problem.k;
    part.out = static_cast<std::uint16_t*>(problem.out) + static_cast<std::size_t>(first) * problem.rows;
    Kernel const kernel = choose_kernel(number, swizzled, part.tokens > 8, decodes_ahead(part.tokens, plan));
    status = allow_shared(kernel, device);
    if (status != cudaSuccess) return status;
    status = launch_dependent(kernel, dim3(plan.blocks), dim3(32 * plan.slices, plan.teams), plan.shared_bytes, stream, part);
  }
  return status;
}

}  // namespace gb10::nvfp4_gemv
