// Which instance of fp8_gemv.cuh serves a shape, and its launch.
#include "fp8_gemv.cuh"

#include "split_k_launch.cuh"

namespace gb10::fp8_gemv {
namespace {

template <typename T, int kTokenTiles, bool kBlockScales>
cudaError_t launch_tokens(Arguments const& p, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  if (status != cudaSuccess) return status;
  int const tiles = divide_up(p.rows, split_k::kTileRows);
  bool launched = false;
  auto const attempt = [&]<int kWarps, bool kStaged>(bool few_tiles) {
    std::size_t const bytes = shared_bytes<kTokenTiles, kWarps>(p.tokens, p.columns, kStaged);
    if (launched || !split_k::fits(device, kWarps, bytes) || !(few_tiles || split_k::fills(device, kWarps, tiles))) return;
    launched = true;
    status = split_k::launch(gemv<T, kTokenTiles, kWarps, kBlockScales, kStaged>, device, kWarps, bytes, tiles, stream, p);
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
