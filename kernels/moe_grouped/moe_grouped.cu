// The launches of moe_grouped.
#include "moe_grouped.h"

#include <algorithm>

#include "gb10/launch.cuh"
#include "multiply.cuh"
#include "warpgroups.cuh"

namespace gb10::moe_grouped {
namespace {

constexpr int kCombineThreads = 256;

// count, group, the two launches that multiply, combine: next(kernel, blocks, threads, bytes of shared memory, arguments).
template <typename T, typename Multiply>
cudaError_t launch_around(Arguments const& a, Plan const& p, Device const& device, cudaStream_t stream, Multiply&& multiply) {
  cudaError_t status = allow_shared(count<T>, device);
  if (status == cudaSuccess) status = allow_shared(group, device);
  auto const next = [&](auto kernel, int blocks, int threads, int bytes, auto... arguments) {
    if (status == cudaSuccess) status = launch_dependent(kernel, dim3(blocks), dim3(threads), bytes, stream, arguments...);
  };
  int const copiers = std::min(device.sms, divide_up(a.tokens * (a.w13.k / 8), kGroupThreads)), rows = a.w2.rows;
  int const bytes = group_bytes(a.experts);
  next(count<T>, p.chunks + copiers, kGroupThreads, bytes, a, p);
  if (p.chunks > 1) next(group, p.chunks, kGroupThreads, bytes, a, p);
  multiply(next);
  next(combine<T>, a.tokens, std::min(kCombineThreads, divide_up(rows / 8, 32) * 32), combine_bytes(a.topk), a, p);
  return status;
}

// Whether the GPU and the layer are such that warpgroups multiply.
bool for_warpgroups(Arguments const& a, Plan const& p, Device const& device, Number number, bool swizzled) {
  static_assert(kWarpgroupsFrom >= kSmallTile);  // the workspace has room for large tiles
  return p.pairs > std::int64_t{kWarpgroupsFrom} * a.experts && device.capability == 90 && number == Number::kBFloat16 &&
         !swizzled && a.gated && a.activation == moe::Activation::kSwish;
}

cudaError_t launch_warpgroups(Arguments const& a, Plan const& p, Device const& device, cudaStream_t stream) {
  cudaError_t status = allow_shared(multiply_by_warpgroups<false>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(multiply_by_warpgroups<true>, device, cudaSharedmemCarveoutMaxShared);
  if (status != cudaSuccess) return status;
  int const up_tiles = divide_up(std::max(a.w2.k, p.shared_intermediate), rows_of_item(false));
  int const down_tiles = divide_up(a.w2.rows, rows_of_item(true));
  return launch_around<__nv_bfloat16>(a, p, device, stream, [&](auto&& next) {
    next(multiply_by_warpgroups<false>, std::min(device.sms, p.at.tile_limit * up_tiles), kItemThreads, kSharedBytes, a, p,
         up_tiles);
    next(multiply_by_warpgroups<true>, std::min(device.sms, p.at.tile_limit * down_tiles), kItemThreads, kSharedBytes, a, p,
         down_tiles);
  });
}

template <typename T, int kTile, bool kSwizzled>
cudaError_t launch_all(Arguments const& a, Plan const& p, Device const& device, cudaStream_t stream) {
  cudaError_t status = allow_shared(multiply<T, kTile, false, kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(multiply<T, kTile, true, kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status != cudaSuccess) return status;
  bool const fits = multiply_bytes<kTile>(kStages) <= static_cast<int>(device.block_shared_bytes);
  int const stages = fits ? kStages : kFewerStages, bytes = multiply_bytes<kTile>(stages), tiles = p.at.tile_limit;
  int const up_tiles = divide_up(std::max(a.w2.k, p.shared_intermediate), rows_of_block(false));
  int const down_tiles = divide_up(a.w2.rows, rows_of_block(true));
  return launch_around<T>(a, p, device, stream, [&](auto&& next) {
    next(multiply<T, kTile, false, kSwizzled>, tiles * up_tiles, kThreads, bytes, a, p, up_tiles, stages);
    next(multiply<T, kTile, true, kSwizzled>, tiles * down_tiles, kThreads, bytes, a, p, down_tiles, stages);
  });
}

}  // namespace

cudaError_t launch(Arguments const& a, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  if (cudaError_t const status = current_device(device); status != cudaSuccess) return status;
  Plan p{};
  p.pairs = a.tokens * a.topk;
  p.shared_intermediate = a.shared_w2.codes ? a.shared_w2.k : 0;
  p.tile = tile_tokens(p.pairs, a.experts);
  p.chunks = chunks_of(p.pairs, a.experts, a.w2.k);
  p.at = workspace_of(a.tokens, a.topk, a.experts, a.w2.rows, a.w2.k, p.shared_intermediate);
  if (for_warpgroups(a, p, device, number, swizzled)) {
    p.tile = kWideTile;
    p.by_warpgroups = true;
    return launch_warpgroups(a, p, device, stream);
  }
  return with_type(number, [&]<typename T>() {
    auto const of_tile = [&]<int kTile>() {
      return swizzled ? launch_all<T, kTile, true>(a, p, device, stream) : launch_all<T, kTile, false>(a, p, device, stream);
    };
    return p.tile == kSmallTile ? of_tile.template operator()<kSmallTile>() : of_tile.template operator()<kLargeTile>();
  });
}

}  // namespace gb10::moe_grouped
