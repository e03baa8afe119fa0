// The host's side of moe.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "sparse24.h"

namespace gb10::sparse24 {

inline constexpr int kMaxTopk = 32;
inline constexpr int kMaxExperts = 1 << 16;
inline constexpr int kMaxWidth = 1 << 16;  // of hidden and intermediate

enum class Activation : int { kSilu, kGelu, kGeluTanh };

struct MoeArguments {
  void const* x;                   // [tokens, hidden], 16-byte aligned
  Packed w13;                      // [experts][2 * intermediate, hidden]
  float const* w13_globals;        // [experts, global_columns]
  Packed w2;                       // [experts][hidden, intermediate]
  float const* w2_globals;         // [experts]
  void const* ids;                 // [tokens, topk] int32, or int64 when wide_ids
  float const* weights;            // [tokens, topk]
  std::int32_t const* expert_map;  // [map_size] to a local expert or -1; nullptr: ids are local
  float* act;                      // workspace: [tokens * topk, intermediate], 16-byte aligned
  void* out;                       // [tokens, hidden]
  int tokens, topk, experts, map_size;
  int hidden, intermediate;
  int global_columns;              // 1, or 2: gate, up
  Activation activation;
  bool up_first, wide_ids, router_weight_on_input;
  float limit, alpha, beta;
};

// The two launches of one call; gives the first CUDA error. cudaErrorInvalidConfiguration: one token does not fit shared memory.
cudaError_t launch_moe(MoeArguments const& arguments, Number number, cudaStream_t stream);

// Bytes of shared memory that one token takes, and the most that a block of the current device can have.
std::size_t moe_token_bytes(int topk, int hidden, int intermediate);
cudaError_t moe_shared_limit(std::size_t& bytes);

}  // namespace gb10::sparse24
