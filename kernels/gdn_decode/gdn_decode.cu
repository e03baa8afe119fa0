// Which instance of gdn_decode.cuh serves a call, and its launch.
#include "gdn_decode.cuh"

#include "gb10/launch.cuh"

namespace gb10::gdn_decode {
namespace {

template <typename T, typename S, int kKeySize, int kSteps>
cudaError_t launch_heads(Arguments& p, cudaStream_t stream) {
  Device device{};
  cudaError_t const status = current_device(device);
  if (status != cudaSuccess) return status;
  auto const start = [&]<int kRows>() {
    prepare(p, kRows);
    Layout const at(p.steps, kKeySize, p.value_size, kRows);
    dim3 const cluster(p.ratio * p.split), grid(cluster.x, p.key_heads, p.sequences);
    return launch_dependent_clusters(decode<T, S, kKeySize, kRows, kSteps>, grid, cluster, dim3(kLanes * kRows),
                                     sizeof(float) * at.all, stream, p);
  };
  // Small blocks while all find place at once; then larger ones, which convolve q and k less often.
  std::int64_t const blocks = static_cast<std::int64_t>(p.sequences) * p.value_heads * (p.value_size / 32);
  bool const small = p.value_heads / p.key_heads * (p.value_size / 32) <= kMaxCluster;
  return small && blocks <= kResident<S, 32, kSteps> * device.sms ? start.template operator()<32>()
                                                                  : start.template operator()<64>();
}

template <typename T, typename S>
cudaError_t launch_sizes(Arguments& p, cudaStream_t stream) {
  bool const one = p.steps == 1 && p.starts == nullptr;
  if (p.key_size == 128) return one ? launch_heads<T, S, 128, 1>(p, stream) : launch_heads<T, S, 128, kMaxSteps>(p, stream);
  return one ? launch_heads<T, S, 64, 1>(p, stream) : launch_heads<T, S, 64, kMaxSteps>(p, stream);
}

}  // namespace

cudaError_t launch(Arguments p, Number number, Number state, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() {
    return state == Number::kFloat32 ? launch_sizes<T, float>(p, stream) : launch_sizes<T, T>(p, stream);
  });
}

}  // namespace gb10::gdn_decode
