// How a call of route_experts is cut, and its launch.
#include "moe_router.cuh"

#include <algorithm>
#include <cstdlib>

#include "gb10/launch.cuh"

namespace gb10::moe_router {
namespace {

using Kernel = void (*)(Arguments, Plan);

Kernel choose_kernel(Number number, int vectors) {
  return with_type(number, [=]<typename T>() -> Kernel {
    if (vectors <= 1) return route<T, 1>;
    if (vectors <= 2) return route<T, 2>;
    if (vectors <= 4) return route<T, 4>;
    return route<T, kMaxVectors>;
  });
}

// Warps that share a token, as log2: a power of two, all of a block with one token.
int warps_shift(int tokens) {
  int shift = 0;
  while (2 * tokens << shift <= kWarps) ++shift;
  return shift;
}

int vectors_of(int tokens, int columns) { return divide_up(columns / 8, 32 << warps_shift(tokens)); }

}  // namespace

cudaError_t launch(Arguments const& a, Number number, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  int step = a.tokens;
  while (vectors_of(step, a.columns) > kMaxVectors) step = divide_up(step, 2);
  for (int first = 0; first < a.tokens && status == cudaSuccess; first += step) {
    Arguments part = a;
    part.tokens = std::min(step, a.tokens - first);
    auto const skip = [&](auto* pointer, int size) { return pointer ? pointer + static_cast<std::int64_t>(first) * size : pointer; };
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
    if (char const* own = std::getenv("GB10_ROUTER_ROWS")) plan.tile_rows = std::atoi(own);  // MEASURING
    plan.late = std::getenv("GB10_ROUTER_LATE") != nullptr;                                     // MEASURING
    plan.tiles = divide_up(rows, plan.tile_rows);
    plan.warps_shift = warps_shift(part.tokens);
    plan.inverse_columns = 1.0f / static_cast<float>(a.columns);
    Kernel const kernel = choose_kernel(number, vectors_of(part.tokens, a.columns));
    // The split of L1 that moe_decode has: with another one its blocks could not share an SM with these.
    status = allow_shared(kernel, device, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
    status = launch_dependent(kernel, dim3(plan.tiles + part.tokens), dim3(kThreads), shared_bytes(part.tokens, a.columns), stream,
                              part, plan);
  }
  return status;
}

}  // namespace gb10::moe_router
