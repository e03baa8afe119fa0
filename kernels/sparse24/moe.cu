// Which instance of moe.cuh serves a call, and its launches.
#include "moe.cuh"

#include <algorithm>

#include "gb10/launch.cuh"

namespace gb10::sparse24 {
namespace {

cudaError_t start(void (*kernel)(MoeArguments), MoeArguments const& p, Device const& device, std::size_t bytes, int tiles_per_block,
                  int tiles, cudaStream_t stream) {
  if (cudaError_t const status = allow_shared(kernel, device); status != cudaSuccess) return status;
  int const per_sm = blocks_per_sm(device, bytes, 2);
  int const blocks = std::min(divide_up(tiles, tiles_per_block), device.sms * per_sm);
  return launch_dependent(kernel, dim3(blocks), dim3(kMoeThreads), bytes, stream, p);
}

template <typename T, int kGroups>
cudaError_t launch_groups(MoeArguments const& p, Device const& device, cudaStream_t stream) {
  // As many entries as there can be; a team without work leaves at once. Few tiles are each shared by all warps of a block.
  int const tiles = p.tokens * p.topk * (p.intermediate / kTileRows);
  bool const few = kGroups == 1 && tiles <= 4 * device.sms;
  cudaError_t status = cudaSuccess;
  if constexpr (kGroups == 1) {
    if (few) status = start(gate_up<T, 1, 8>, p, device, gate_up_bytes<1, 8>(p.tokens, p.topk, p.hidden), 1, tiles, stream);
  }
  if (!few) {
    status = start(gate_up<T, kGroups, 2>, p, device, gate_up_bytes<kGroups, 2>(p.tokens, p.topk, p.hidden), 4, tiles, stream);
  }
  if (status != cudaSuccess) return status;
  return start(down<T, kGroups>, p, device, down_bytes<kGroups>(p.tokens, p.topk, p.intermediate), 1, p.hidden / kTileRows, stream);
}

std::size_t most_bytes(int tokens, int topk, int hidden, int intermediate) {
  return tokens > 8 ? std::max(gate_up_bytes<2, 2>(tokens, topk, hidden), down_bytes<2>(tokens, topk, intermediate))
                    : std::max({gate_up_bytes<1, 2>(tokens, topk, hidden), gate_up_bytes<1, 8>(tokens, topk, hidden),
                                down_bytes<1>(tokens, topk, intermediate)});
}

template <typename T>
cudaError_t launch_typed(MoeArguments const& p, cudaStream_t stream) {
  Device device{};
  cudaError_t status = current_device(device);
  // Tokens whose activations fit into shared memory; more than that take two more launches.
  int most = p.tokens;
  while (most > 1 && most_bytes(most, p.topk, p.hidden, p.intermediate) > device.block_shared_bytes) most = (most + 1) / 2;
  for (int first = 0; first < p.tokens && status == cudaSuccess; first += most) {
    MoeArguments some = p;
    static_cast<moe::Routing&>(some) = p.part(first, std::min(most, p.tokens - first));
    some.x = static_cast<T const*>(p.x) + static_cast<std::size_t>(first) * p.hidden;
    some.act = p.act + static_cast<std::size_t>(first) * p.topk * p.intermediate;
    some.out = static_cast<T*>(p.out) + static_cast<std::size_t>(first) * p.hidden;
    status = some.tokens > 8 ? launch_groups<T, 2>(some, device, stream) : launch_groups<T, 1>(some, device, stream);
  }
  return status;
}

}  // namespace

std::size_t moe_token_bytes(int topk, int hidden, int intermediate) { return most_bytes(1, topk, hidden, intermediate); }

cudaError_t launch_moe(MoeArguments const& p, Number number, cudaStream_t stream) {
  return with_type(number, [&]<typename T>() { return launch_typed<T>(p, stream); });
}

}  // namespace gb10::sparse24
