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
  int const tiles = (p.rows + split_k::kTileRows - 1) / split_k::kTileRows;
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

template <typename T, bool kBlockScales>
cudaError_t launch_typed(Arguments const& p, cudaStream_t stream) {
  return p.tokens > 8 ? launch_tokens<T, 2, kBlockScales>(p, stream) : launch_tokens<T, 1, kBlockScales>(p, stream);
}

}  // namespace

cudaError_t launch(Arguments const& p, Number number, Scaling scaling, cudaStream_t stream) {
  if (number == Number::kBFloat16) {
    return scaling == Scaling::kRow ? launch_typed<__nv_bfloat16, false>(p, stream) : launch_typed<__nv_bfloat16, true>(p, stream);
  }
  return scaling == Scaling::kRow ? launch_typed<__half, false>(p, stream) : launch_typed<__half, true>(p, stream);
}

}  // namespace gb10::fp8_gemv
