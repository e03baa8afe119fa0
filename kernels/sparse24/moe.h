// The host's side of moe.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/moe.h"
#include "sparse24.h"

namespace gb10::sparse24 {

inline constexpr int kMaxExperts = 1 << 16;
inline constexpr int kMaxWidth = 1 << 16;  // of hidden and intermediate

struct MoeArguments : moe::Routing, moe::ActivationNumbers {
  void const* x;             // [tokens, hidden], 16-byte aligned
  Packed w13;                // [experts][2 * intermediate, hidden]
  float const* w13_globals;  // [experts, global_columns]
  Packed w2;                 // [experts][hidden, intermediate]
  float const* w2_globals;   // [experts]
  float* act;                // workspace: [tokens * topk, intermediate], 16-byte aligned
  void* out;                 // [tokens, hidden]
  int hidden, intermediate;
  int global_columns;  // 1, or 2: gate, up
  bool up_first;
};

// The two launches of one call; gives the first CUDA error. cudaErrorInvalidConfiguration: one token does not fit shared memory.
cudaError_t launch_moe(MoeArguments const& arguments, Number number, cudaStream_t stream);

// Bytes of shared memory that one token takes.
std::size_t moe_token_bytes(int topk, int hidden, int intermediate);

}  // namespace gb10::sparse24
