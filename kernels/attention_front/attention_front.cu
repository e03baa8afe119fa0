// Which instance of attention_front.cuh serves a call, and its launch.
#include "attention_front.cuh"

#include "gb10/launch.cuh"

namespace gb10::attention_front {

cudaError_t launch(Arguments const& p, Number number, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() {
    auto* const kernel = p.head_size == 256 ? front<T, 8> : p.head_size == 128 ? front<T, 4> : front<T, 2>;
    Device device{};
    cudaError_t status = current_device(device);
    // The split of L1 that the kernels around it have: with another one its blocks could not share an SM with theirs.
    if (status == cudaSuccess) status = allow_shared(kernel, device, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
    dim3 const grid(p.tokens, divide_up(p.heads + 2 * p.kv_heads, kWarps));
    return launch_dependent(kernel, grid, dim3(32 * kWarps), 0, stream, p);
  });
}

cudaError_t launch_gate(GateArguments const& p, Number number, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() {
    Device device{};
    cudaError_t status = current_device(device);
    if (status == cudaSuccess) status = allow_shared(gate<T>, device, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
    dim3 const grid(p.tokens, divide_up(p.heads * p.head_size, 8 * kGateThreads));
    return launch_dependent(gate<T>, grid, dim3(kGateThreads), 0, stream, p);
  });
}

}  // namespace gb10::attention_front
