// What a call of moe_decode is made of, shared by the kernels, their launch and the torch operator. The maths and the layouts
// are in moe_decode.cuh.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace gb10::moe_decode {

inline constexpr int kMaxTokens = 16;
inline constexpr int kMaxTopk = 32;
inline constexpr int kMaxExperts = 8192;
inline constexpr int kMaxWidth = 32768;  // of hidden and intermediate: one token fits the 99 KB that a block has on 8.6, 8.9 and 12.x

enum class Activation : int { kSwish, kGelu, kGeluTanh, kRelu2, kSwigluStep, kSitu };

// A stack of NVFP4 matrices [count][rows, k].
struct Matrix {
  std::uint8_t const* codes;         // [count][rows][k / 2]
  std::uint8_t const* scales;        // [count][scale_bytes], linear or swizzled
  float const* globals;              // [count][global_columns]
  std::int64_t scale_bytes;          // of one matrix
  int rows;
  int k;
  int global_columns;                // 1, or 2: gate, up
};

struct Arguments {
  void const* x;                     // [tokens, hidden]
  void const* ids;                   // [tokens, topk] int32, or int64 when wide_ids
  float const* weights;              // [tokens, topk]
  std::int32_t const* expert_map;    // [map_size] to a local expert or -1; nullptr: ids are local
  void const* shared_multiplier;     // [tokens]: float32, or as x when multiplier_as_x; nullptr: 1
  void* act;                         // workspace_bytes() of memory, at a multiple of 16
  void* out;                         // [tokens, hidden]
  Matrix w13, w2;
  Matrix shared_w13, shared_w2;      // codes is nullptr without a shared expert
  int tokens, topk, experts, map_size;
  Activation activation;
  bool gated, interleaved, up_first;
  bool wide_ids, multiplier_as_x, router_weight_on_input;
  float limit, alpha, beta;
};

// How the work is cut; zero leaves the choice to launch().
struct Tuning {
  int gate_up_warps = 0;             // of a block, one to an SM; at most 24
  int gate_up_depth = 0;             // parts a warp keeps in flight: 2, 3 or 4
  int down_warps = 0;                // of a block, at most 16
  int down_depth = 0;                // 2, 3 or 4
  int down_columns = 0;              // most tokens of an entry of down: 1, 2, 4 or 8
  bool overlap = true;               // programmatic dependent launch
  int launches = 3;                  // which of the two to make: 1 gate_up, 2 down (to time them)
};

// Workspace for the results of the activation: 17 bits each, see moe_decode.cuh.
constexpr std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t intermediate, std::int64_t shared_intermediate) {
  std::int64_t const values = tokens * (topk * intermediate + shared_intermediate);
  return 2 * values + values / 8;
}

// x and out: bfloat16, else float16. The two launches of one call, on one stream; more such pairs, for some of the tokens each,
// when the activations of all do not fit in shared memory.
cudaError_t launch(Arguments const& arguments, bool bfloat16, bool swizzled, cudaStream_t stream, Tuning tuning = {});

}  // namespace gb10::moe_decode
