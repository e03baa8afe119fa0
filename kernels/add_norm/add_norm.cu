// Which instance of add_norm.cuh serves a call, and its launch.
#include "add_norm.cuh"

#include <algorithm>

#include "gb10/launch.cuh"

namespace gb10::add_norm {

cudaError_t launch(Arguments const& p, Number number, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() {
    int const vectors = p.columns / 8, threads = std::min(kThreads, divide_up(vectors, 32) * 32);
    int const each = divide_up(vectors, threads);
    auto* const kernel = each == 1 ? add_norm<T, 1> : each == 2 ? add_norm<T, 2> : each <= 4 ? add_norm<T, 4> : add_norm<T, 8>;
    Device device{};
    cudaError_t status = current_device(device);
    // The split of L1 that the kernels around it have: with another one its blocks could not share an SM with theirs.
    if (status == cudaSuccess) status = allow_shared(kernel, device, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
    return launch_dependent(kernel, dim3(p.rows), dim3(threads), 32 * sizeof(float), stream, p);
  });
}

}  // namespace gb10::add_norm
