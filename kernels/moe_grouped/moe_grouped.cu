// The launches of moe_grouped.
#include "moe_grouped.h"

#include <algorithm>

#include "gb10/launch.cuh"
#include "multiply.cuh"

namespace gb10::moe_grouped {
namespace {

constexpr int kCombineThreads = 256;

template <typename T, int kTile, bool kSwizzled>
cudaError_t launch_all(Arguments const& a, Plan const& p, Device const& device, cudaStream_t stream) {
  cudaError_t status = allow_shared(multiply<T, kTile, false, kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(multiply<T, kTile, true, kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(group<T>, device);
  auto const next = [&](auto kernel, int blocks, int threads, int bytes, auto... arguments) {
    if (status == cudaSuccess) status = launch_dependent(kernel, dim3(blocks), dim3(threads), bytes, stream, arguments...);
  };
  bool const fits = multiply_bytes<kTile>(kStages) <= static_cast<int>(device.block_shared_bytes);
  int const stages = fits ? kStages : kFewerStages, bytes = multiply_bytes<kTile>(stages);
  int const tiles = p.at.tile_limit, rows = a.w2.rows;
  int const up_tiles = divide_up(std::max(a.w2.k, p.shared_intermediate), rows_of_block(false));
  int const down_tiles = divide_up(rows, rows_of_block(true));
  int const copiers = std::min(device.sms, divide_up(a.tokens * (a.w13.k / 8), kGroupThreads));
  next(group<T>, 1 + copiers, kGroupThreads, group_bytes(a.experts, kGroupThreads), a, p);
  next(multiply<T, kTile, false, kSwizzled>, tiles * up_tiles, kThreads, bytes, a, p, up_tiles, stages);
  next(multiply<T, kTile, true, kSwizzled>, tiles * down_tiles, kThreads, bytes, a, p, down_tiles, stages);
  next(combine<T>, a.tokens, std::min(kCombineThreads, divide_up(rows / 8, 32) * 32), combine_bytes(a.topk), a, p);
  return status;
}

}  // namespace

cudaError_t launch(Arguments const& a, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  if (cudaError_t const status = current_device(device); status != cudaSuccess) return status;
  Plan p{};
  p.pairs = a.tokens * a.topk;
  p.shared_intermediate = a.shared_w2.codes ? a.shared_w2.k : 0;
  p.tile = tile_tokens(p.pairs, a.experts);
  p.at = workspace_of(a.tokens, a.topk, a.experts, a.w2.rows, a.w2.k, p.shared_intermediate);
  return with_type(number, [&]<typename T>() {
    auto const of_tile = [&]<int kTile>() {
      return swizzled ? launch_all<T, kTile, true>(a, p, device, stream) : launch_all<T, kTile, false>(a, p, device, stream);
    };
    return p.tile == kSmallTile ? of_tile.template operator()<kSmallTile>() : of_tile.template operator()<kLargeTile>();
  });
}

}  // namespace gb10::moe_grouped
