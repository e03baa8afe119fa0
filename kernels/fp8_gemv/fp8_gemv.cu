// Which instance of fp8_gemv.cuh serves a shape, and its launch.
#include "fp8_gemv.cuh"

#include <algorithm>

#include "gb10/launch.cuh"

namespace gb10::fp8_gemv {
namespace {

template <typename T, int kTokenTiles, bool kBlockScales>
cudaError_t launch_tokens(Arguments const& p, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  if (status != cudaSuccess) return status;
  int const tiles = divide_up(p.rows, split_k::kTileRows);
  bool launched = false;
  // A GPU's worth of blocks, kSmWarps to an SM, and the fewest warps with which they have a tile each: short tiles balance.
  auto const attempt = [&]<int kWarps, bool kStaged>(bool few_tiles) {
    std::size_t const bytes = shared_bytes<kTokenTiles, kWarps>(p.tokens, p.columns, kStaged);
    int const per_sm = split_k::kSmWarps / kWarps, blocks = device.sms * per_sm;
    if (launched || blocks_per_sm(device, bytes, per_sm) < per_sm || (tiles < blocks && !few_tiles)) return;
    launched = true;
    auto* const kernel = gemv<T, kTokenTiles, kWarps, kBlockScales, kStaged>;
    status = allow_shared(kernel, device);
    if (status != cudaSuccess) return;
    status = launch_dependent(kernel, dim3(std::min(tiles, blocks)), dim3(32 * kWarps), bytes, stream, p);
  };
  attempt.template operator()<4, true>(false);
  attempt.template operator()<8, true>(false);
  attempt.template operator()<16, true>(true);
  attempt.template operator()<8, false>(true);
  return launched ? status : cudaErrorInvalidConfiguration;
}

}  // namespace

cudaError_t launch(Arguments const& p, Number number, Scaling scaling, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() {
    if (scaling == Scaling::kRow) {
      return p.tokens > 8 ? launch_tokens<T, 2, false>(p, stream) : launch_tokens<T, 1, false>(p, stream);
    }
    return p.tokens > 8 ? launch_tokens<T, 2, true>(p, stream) : launch_tokens<T, 1, true>(p, stream);
  });
}

}  // namespace gb10::fp8_gemv
