// The launches of moe_grouped.
#include "moe_grouped.h"

#include <algorithm>

#include "gb10/launch.cuh"
#include "multiply.cuh"

namespace gb10::moe_grouped {
namespace {

constexpr int kCombineThreads = 256;

template <typename T, bool kSwizzled>
cudaError_t launch_all(Arguments const& a, Plan const& p, Device const& device, cudaStream_t stream) {
  cudaError_t status = allow_shared(multiply<T, false, kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(multiply<T, true, kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(group<T>, device);
  if (status != cudaSuccess) return status;
  int const blocks = std::min(device.sms, divide_up(a.tokens * (a.w13.k / 8), kGroupThreads)) + 1;
  group<T><<<blocks, kGroupThreads, group_bytes(a.experts, kGroupThreads), stream>>>(a, p);
  int const tiles = p.at.tile_limit;
  int const channels = std::max(a.w2.k, p.shared_intermediate);
  int const gate_up_tiles = divide_up(channels, rows_of_block(false)), down_tiles = divide_up(a.w2.rows, rows_of_block(true));
  multiply<T, false, kSwizzled><<<tiles * gate_up_tiles, kThreads, kMultiplyBytes, stream>>>(a, p, gate_up_tiles);
  multiply<T, true, kSwizzled><<<tiles * down_tiles, kThreads, kMultiplyBytes, stream>>>(a, p, down_tiles);
  combine<T><<<a.tokens, std::min(kCombineThreads, divide_up(a.w2.rows / 8, 32) * 32), combine_bytes(a.topk), stream>>>(a, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(Arguments const& a, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  if (cudaError_t const status = current_device(device); status != cudaSuccess) return status;
  Plan p{};
  p.pairs = a.tokens * a.topk;
  p.shared_intermediate = a.shared_w2.codes ? a.shared_w2.k : 0;
  p.at = workspace_of(a.tokens, a.topk, a.experts, a.w2.rows, a.w2.k, p.shared_intermediate);
  return with_type(number, [&]<typename T>() {
    return swizzled ? launch_all<T, true>(a, p, device, stream) : launch_all<T, false>(a, p, device, stream);
  });
}

}  // namespace gb10::moe_grouped
