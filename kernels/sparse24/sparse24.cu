// Which instance of sparse24.cuh serves a shape, and its launch.
#include "sparse24.cuh"

#include <algorithm>

#include "gb10/launch.cuh"

namespace gb10::sparse24 {
namespace {

template <typename T, int kGroups, int kSlices, int kTeams>
cudaError_t start(Arguments const& p, Device const& device, int tiles, cudaStream_t stream) {
  constexpr int kMost = 16 / (kSlices * kTeams);  // blocks of an SM: 16 warps, 128 registers a thread
  constexpr bool kTurns = kSlices * kTeams < 16;
  auto* const kernel = gemv<T, kGroups, kSlices, kTeams, kTurns, kMost>;
  std::size_t const bytes = shared_bytes<kGroups, kSlices, kTeams, kTurns>(p.tokens, p.columns);
  if (cudaError_t const status = allow_shared(kernel, device); status != cudaSuccess) return status;
  int const blocks = std::min(divide_up(tiles, kTeams), device.sms * blocks_per_sm(device, bytes, kMost));
  return launch_dependent(kernel, dim3(blocks), dim3(32 * kSlices * kTeams), bytes, stream, p);
}

// The fewer tiles there are for the warps of the GPU, the more warps share one. Measured on an H200 (docs/sparse24.md).
template <typename T>
cudaError_t launch_tokens(Arguments const& p, Device const& device, cudaStream_t stream) {
  int const tiles = divide_up(p.rows, kTileRows), warps = 16 * device.sms;
  if (p.tokens > 8) {
    if (tiles >= warps) return start<T, 2, 1, 8>(p, device, tiles, stream);
    if (tiles > 4 * device.sms) return start<T, 2, 4, 2>(p, device, tiles, stream);
    return start<T, 2, 16, 1>(p, device, tiles, stream);
  }
  if (2 * tiles >= warps) return start<T, 1, 2, 4>(p, device, tiles, stream);
  if (tiles <= device.sms && column_tiles(p.columns) > 8) return start<T, 1, 16, 1>(p, device, tiles, stream);
  if (20 * tiles >= warps) return start<T, 1, 4, 2>(p, device, tiles, stream);
  return start<T, 1, 8, 1>(p, device, tiles, stream);
}

template <typename T>
cudaError_t launch_typed(Arguments p, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  // Tokens whose activations fit into shared memory; more than that take the weight once more.
  std::size_t const sums = std::max(sum_bytes<2, 4, 2, true>(), sum_bytes<1, 8, 1, true>());
  std::size_t const token_bytes = sizeof(__half) * row_stride(p.columns);
  int const most = static_cast<int>(std::min<std::size_t>(kMaxTokens, (device.block_shared_bytes - sums) / token_bytes));
  for (int left = p.tokens; left > 0 && status == cudaSuccess; left -= p.tokens) {
    p.tokens = std::min(left, most);
    status = launch_tokens<T>(p, device, stream);
    p.x = static_cast<T const*>(p.x) + static_cast<std::size_t>(p.tokens) * p.columns;
    p.out = static_cast<T*>(p.out) + static_cast<std::size_t>(p.tokens) * p.rows;
  }
  return status;
}

}  // namespace

cudaError_t launch(Arguments const& p, Number number, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() { return launch_typed<T>(p, stream); });
}

}  // namespace gb10::sparse24
