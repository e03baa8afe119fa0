// How a call of moe_decode is cut, and its launches.
#include "moe_decode.h"

#include <algorithm>

#include "down.cuh"
#include "gate_up.cuh"
#include "gate_up_one.cuh"
#include "gb10/launch.cuh"

namespace gb10::moe_decode {
namespace {

// The most warps, `warps` at most, with which a block fits its shared memory; bytes(warps) is what it takes.
template <typename Bytes>
int fitting(int warps, Device const& device, Bytes&& bytes) {
  while (warps > 1 && bytes(warps) > static_cast<int>(device.block_shared_bytes)) --warps;
  return warps;
}

// More than half of an SM's memory: with room for two blocks a GPU would put two on some SMs and none on others.
std::size_t alone(Device const& device) {
  return std::min(device.block_shared_bytes, device.sm_shared_bytes / 2 - kReservedShared + 128);
}

template <bool kSwizzled>
cudaError_t launch_gate_up_one(Arguments const& a, OnePlan const& plan, Device const& device, cudaStream_t stream) {
  cudaError_t const status = allow_shared(gate_up_one<kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status != cudaSuccess) return status;
  std::size_t const bytes = std::max<std::size_t>(one_bytes(plan, kOneWarps), alone(device));
  return launch_dependent(gate_up_one<kSwizzled>, dim3(device.sms), dim3(32 * kOneWarps), bytes, stream, a, plan);
}

template <bool kSwizzled>
cudaError_t launch_gate_up(Arguments const& a, Sizes const& s, Device const& device, bool bfloat16, cudaStream_t stream) {
  // With little work the warps' own beginnings cost more than they bring (measured in a chain as a model runs it).
  int const most = s.pairs * s.channel_tiles < 32 * device.sms ? 12 : kGateUpWarps;
  int const warps = fitting(most, device, [&](int warps) { return gate_up_bytes(a, s, warps); });
  std::size_t const bytes = std::max<std::size_t>(gate_up_bytes(a, s, warps), alone(device));
  return launch_dependent(gate_up<kSwizzled>, dim3(device.sms), dim3(32 * warps), bytes, stream, a, gate_up_plan(a, s, bfloat16));
}

template <bool kSwizzled>
cudaError_t launch_down(Arguments const& a, Sizes const& s, Device const& device, bool bfloat16, cudaStream_t stream) {
  int const columns = s.tokens == 1 ? 1 : 2;  // of an entry
  // At least two parts to a warp.
  int const items = s.pairs * s.k_tiles + divide_up(s.tokens, columns) * s.shared_k_tiles;
  int const most = items < 4 * kDownThreads / 32 ? std::clamp(divide_up(items, 2), 1, 8) : kDownThreads / 32;
  int const warps = fitting(most, device, [&](int warps) { return down_bytes(a, s, warps, columns); });
  int const bytes = down_bytes(a, s, warps, columns);
  int per_sm = 0;
  cudaError_t const status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, down<kSwizzled>, 32 * warps, bytes);
  if (status != cudaSuccess) return status;
  int const blocks = std::min(a.w2.rows / w4a16::kTileRows, device.sms * std::max(per_sm, 1));
  return launch_dependent(down<kSwizzled>, dim3(blocks), dim3(32 * warps), bytes, stream, a, down_plan(s, columns, bfloat16));
}

template <bool kSwizzled>
cudaError_t launch_tokens(Arguments const& a, Device const& device, bool bfloat16, cudaStream_t stream) {
  // One split of L1 for both kernels (and moe_router's): with different ones they could not share an SM.
  cudaError_t status = allow_shared(gate_up<kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  if (status == cudaSuccess) status = allow_shared(down<kSwizzled>, device, cudaSharedmemCarveoutMaxShared);
  Sizes const s = sizes_of(a);
  OnePlan const one = one_plan(a, s, device.sms, bfloat16);
  bool const takes = takes_one(a) && one_bytes(one, kOneWarps) <= static_cast<int>(device.block_shared_bytes);
  if (status == cudaSuccess) {
    status =
        takes ? launch_gate_up_one<kSwizzled>(a, one, device, stream) : launch_gate_up<kSwizzled>(a, s, device, bfloat16, stream);
  }
  if (status == cudaSuccess) status = launch_down<kSwizzled>(a, s, device, bfloat16, stream);
  return status;
}

}  // namespace

cudaError_t launch(Arguments const& a, Number number, bool swizzled, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  if (status != cudaSuccess) return status;
  // All tokens at once, unless their activations do not fit in shared memory.
  int step = a.tokens;
  auto const bytes_of = [&](int tokens) {
    Arguments some = a;
    some.tokens = tokens;
    return gate_up_bytes(some, sizes_of(some), 8);
  };
  while (step > 1 && bytes_of(step) > static_cast<int>(device.block_shared_bytes)) step = divide_up(step, 2);
  for (int first = 0; first < a.tokens && status == cudaSuccess; first += step) {
    Arguments some = a;
    static_cast<moe::Routing&>(some) = a.part(first, std::min(step, a.tokens - first));
    some.x = static_cast<std::uint16_t const*>(a.x) + static_cast<std::int64_t>(first) * a.w13.k;
    some.out = static_cast<std::uint16_t*>(a.out) + static_cast<std::int64_t>(first) * a.w2.rows;
    if (a.shared_multiplier) {
      some.shared_multiplier = static_cast<std::uint8_t const*>(a.shared_multiplier) + first * (a.multiplier_as_x ? 2 : 4);
    }
    bool const bfloat16 = number == Number::kBFloat16;
    status = swizzled ? launch_tokens<true>(some, device, bfloat16, stream) : launch_tokens<false>(some, device, bfloat16, stream);
  }
  return status;
}

}  // namespace gb10::moe_decode
