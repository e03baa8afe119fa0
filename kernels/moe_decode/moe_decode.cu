// Instantiations and launch of moe_decode.cuh.
#include "cut.h"
#include "gb10/device.h"
#include "moe_decode.cuh"

#include <algorithm>

namespace gb10::moe_decode {
namespace {

// Lets a kernel have that much shared memory, and gives the number of its blocks that an SM holds.
cudaError_t prepare(void const* kernel, int threads, int bytes, int& blocks) {
  if (cudaError_t const e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); e != cudaSuccess) return e;
  // One split of L1 for both kernels: with different ones they could not share an SM.
  if (cudaError_t const e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
      e != cudaSuccess)
    return e;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes);
}

template <bool kSwizzled, int kDepth>
cudaError_t launch_gate_up(Arguments const& a, Sizes const& s, Device const& device, bool bfloat16, cudaStream_t stream,
                           Tuning const& tuning, int warps) {
  auto* const kernel = &gate_up<kSwizzled, kDepth>;
  int const bytes = gate_up_bytes(a, s, warps, kDepth);
  int per_sm = 0;
  if (cudaError_t const e = prepare(reinterpret_cast<void const*>(kernel), 32 * warps, bytes, per_sm); e != cudaSuccess) return e;
  return launch_dependent(kernel, dim3(device.sms), dim3(32 * warps), bytes, stream, tuning.overlap, a, gate_up_plan(a, s, bfloat16));
}

template <bool kSwizzled, int kDepth>
cudaError_t launch_down(Arguments const& a, Sizes const& s, Device const& device, bool bfloat16, cudaStream_t stream,
                        Tuning const& tuning, int warps, int columns) {
  auto* const kernel = &down<kSwizzled, kDepth>;
  int const bytes = down_bytes(a, s, warps, kDepth, columns);
  int per_sm = 0;
  if (cudaError_t const e = prepare(reinterpret_cast<void const*>(kernel), 32 * warps, bytes, per_sm); e != cudaSuccess) return e;
  int const blocks = std::min(a.w2.rows / w4a16::kTileRows, device.sms * std::max(per_sm, 1));
  return launch_dependent(kernel, dim3(blocks), dim3(32 * warps), bytes, stream, tuning.overlap, a, down_plan(s, columns, bfloat16));
}

template <bool kSwizzled>
cudaError_t launch_tokens(Arguments const& a, Device const& device, bool bfloat16, cudaStream_t stream, Tuning const& tuning) {
  Sizes const s = sizes_of(a);
  int const limit = static_cast<int>(device.block_shared_bytes);
  if (tuning.launches & 1) {
    // With little work the warps' own beginnings cost more than they bring.
    int depth = tuning.gate_up_depth ? tuning.gate_up_depth : 2;
    int warps = tuning.gate_up_warps ? tuning.gate_up_warps : s.pairs * s.channel_tiles < 8 * device.sms ? 8 : 16;
    while (warps > 8 && gate_up_bytes(a, s, warps, depth) > limit) --warps;
    while (depth > 2 && gate_up_bytes(a, s, warps, depth) > limit) --depth;
    while (warps > 1 && gate_up_bytes(a, s, warps, depth) > limit) --warps;
    auto* const first = depth == 2 ? &launch_gate_up<kSwizzled, 2> : depth == 3 ? &launch_gate_up<kSwizzled, 3> : &launch_gate_up<kSwizzled, 4>;
    if (cudaError_t const e = first(a, s, device, bfloat16, stream, tuning, warps); e != cudaSuccess) return e;
  }
  if (tuning.launches & 2) {
    int columns = tuning.down_columns ? tuning.down_columns : 2;
    while (columns > 1 && columns / 2 >= s.tokens) columns /= 2;
    int depth = tuning.down_depth ? tuning.down_depth : 2;
    // At least two parts to a warp.
    int const items = s.pairs * s.k_tiles + divide_up(s.tokens, columns) * s.shared_k_tiles;
    int warps = tuning.down_warps ? tuning.down_warps : items < 4 * kDownThreads / 32 ? std::clamp(divide_up(items, 2), 1, 8) : kDownThreads / 32;
    while (warps > 8 && down_bytes(a, s, warps, depth, columns) > limit) --warps;
    while (depth > 2 && down_bytes(a, s, warps, depth, columns) > limit) --depth;
    while (warps > 1 && down_bytes(a, s, warps, depth, columns) > limit) --warps;
    auto* const second = depth == 2 ? &launch_down<kSwizzled, 2> : depth == 3 ? &launch_down<kSwizzled, 3> : &launch_down<kSwizzled, 4>;
    if (cudaError_t const e = second(a, s, device, bfloat16, stream, tuning, warps, columns); e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch(Arguments const& a, bool bfloat16, bool swizzled, cudaStream_t stream, Tuning tuning) {
  Device device{};
  if (cudaError_t const e = current_device(device); e != cudaSuccess) return e;
  int const limit = static_cast<int>(device.block_shared_bytes);
  // All tokens at once, unless their activations do not fit in shared memory.
  int step = a.tokens;
  for (;; step = divide_up(step, 2)) {
    Arguments part = a;
    part.tokens = step;
    if (step == 1 || gate_up_bytes(part, sizes_of(part), 8, 2) <= limit) break;
  }
  for (int begin = 0; begin < a.tokens; begin += step) {
    Arguments part = a;
    part.tokens = std::min(step, a.tokens - begin);
    part.x = static_cast<std::uint16_t const*>(a.x) + static_cast<std::int64_t>(begin) * a.w13.k;
    part.out = static_cast<std::uint16_t*>(a.out) + static_cast<std::int64_t>(begin) * a.w2.rows;
    part.ids = static_cast<std::uint8_t const*>(a.ids) + begin * a.topk * (a.wide_ids ? 8 : 4);
    part.weights = a.weights + begin * a.topk;
    if (a.shared_multiplier) {
      part.shared_multiplier = static_cast<std::uint8_t const*>(a.shared_multiplier) + begin * (a.multiplier_as_x ? 2 : 4);
    }
    cudaError_t const e = swizzled ? launch_tokens<true>(part, device, bfloat16, stream, tuning)
                                   : launch_tokens<false>(part, device, bfloat16, stream, tuning);
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

}  // namespace gb10::moe_decode
