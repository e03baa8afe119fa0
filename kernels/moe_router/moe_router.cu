// How a call of route_experts is cut, and its launch.
#include "moe_router.cuh"

#include <algorithm>

#include "gb10/launch.cuh"

namespace gb10::moe_router {
namespace {

using Kernel = void (*)(Arguments, Plan);

// Warps of a block, those of them that share the norm of a token (as log2), and vectors of a thread; powers of two.
struct Cut {
  int warps, warps_shift, vectors;
};

Cut cut_of(int tokens, int columns, int warps) {
  Cut cut{warps, 0, 1};
  while (2 * tokens << cut.warps_shift <= warps) ++cut.warps_shift;
  while (cut.vectors * (256 << cut.warps_shift) < columns) cut.vectors *= 2;
  return cut;
}

// Few warps as long as they hold all tokens: every one of them costs instructions.
Cut cut_of(int tokens, int columns) {
  Cut const few = cut_of(tokens, columns, kFewWarps);
  return tokens <= kFewWarps && few.vectors <= kMaxVectors ? few : cut_of(tokens, columns, kManyWarps);
}

Kernel choose_kernel(Number number, Cut const& cut) {
  return with_type(number, [&]<typename T>() -> Kernel {
    if (cut.warps == kManyWarps) return route<T, kManyWarps, kMaxVectors>;
    if (cut.vectors == 1) return route<T, kFewWarps, 1>;
    if (cut.vectors == 2) return route<T, kFewWarps, 2>;
    if (cut.vectors == 4) return route<T, kFewWarps, 4>;
    return route<T, kFewWarps, kMaxVectors>;
  });
}

}  // namespace

cudaError_t launch(Arguments const& a, Number number, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  int step = a.tokens;
  while (cut_of(step, a.columns).vectors > kMaxVectors) step = divide_up(step, 2);
  for (int first = 0; first < a.tokens && status == cudaSuccess; first += step) {
    Arguments part = a;
    part.tokens = std::min(step, a.tokens - first);
    auto const skip = [&](auto* pointer, int size) {
      return pointer ? pointer + static_cast<std::int64_t>(first) * size : pointer;
    };
    part.x = skip(static_cast<std::uint16_t const*>(a.x), a.columns);
    part.residual = skip(static_cast<std::uint16_t const*>(a.residual), a.columns);
    part.normed = skip(static_cast<std::uint16_t*>(a.normed), a.columns);
    part.residual_out = skip(static_cast<std::uint16_t*>(a.residual_out), a.columns);
    part.ids = skip(a.ids, a.topk);
    part.weights = skip(a.weights, a.topk);
    part.shared_multiplier = skip(a.shared_multiplier, 1);

    Plan plan{};
    // Few tokens: small blocks, as long as all of them run at once.
    int const rows = a.experts + (a.shared_gate != nullptr);
    bool const small = part.tokens <= 4 && divide_up(rows, kTileRows / 2) + part.tokens <= 2 * device.sms;
    plan.tile_rows = small ? kTileRows / 2 : kTileRows;
    plan.tiles = divide_up(rows, plan.tile_rows);
    Cut const cut = cut_of(part.tokens, a.columns);
    int const vectors = cut.warps == kManyWarps ? kMaxVectors : cut.vectors;
    plan.warps_shift = cut.warps_shift;
    plan.vectors_each = divide_up(cut.warps * vectors, plan.tiles);
    plan.inverse_columns = 1.0f / static_cast<float>(a.columns);
    Kernel const kernel = choose_kernel(number, cut);
    // The split of L1 that moe_decode has: with another one its blocks could not share an SM with these.
    status = allow_shared(kernel, device, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
    status = launch_dependent(kernel, dim3(plan.tiles + part.tokens), dim3(32 * cut.warps),
                              shared_bytes(cut.warps, part.tokens, a.columns), stream, part, plan);
  }
  return status;
}

}  // namespace gb10::moe_router
