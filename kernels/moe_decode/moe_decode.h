// A mixture-of-experts layer for 1..16 tokens after routing, in two launches, straight from NVFP4 weights.
//
//   gate_up:  act[token, e, i] = activation(gate, up),  gate = w13[e, gate row i] . x[token],  up = w13[e, up row i] . x[token]
//   down:     out[token, r] = sum over e of weight[token, e] * (w2[e, r] . act[token, e])
//                             + multiplier[token] * (shared_w2[r] . shared_act[token])
//
// e runs over the local experts that the token chose: topk_ids, looked up in expert_map if there is one. An id that is -1, out
// of range, or mapped to no local expert contributes nothing. A token that chose an expert twice has the sum of both weights.
// With router_weight_on_input the weight multiplies gate and up instead (what stock vLLM does) and the sum has none.
//
// Shapes: x [tokens, hidden] and out, bf16 or f16; w13 [experts, 2 * intermediate, hidden / 2] (gate rows first, up rows first,
// or interleaved; [experts, intermediate, hidden / 2] for activations without gate), w2 [experts, hidden, intermediate / 2];
// hidden and intermediate are multiples of 64, at most kMaxWidth. Weight layout and tile: see w4a16.cuh.
//
// Numbers: x is multiplied in f16, a bf16 token times a power of two (w4a16.cuh). act lies in the workspace in f16 too, each
// group of 8 channels times the power of two that puts its largest magnitude into [2^14, 2^15); that power is one byte:
//   half act[tokens * topk * intermediate + tokens * shared intermediate]; of equal ids in one token only the first slot's row
//   uint8 exponent[the same / 8]: the exponent field of the group's largest magnitude as a float, within 16..254
// A row of act is in the order of k that the matrix instruction takes. Sums are FP32 in an order that the ids, the shape and the
// number of SMs decide: two runs give the same bits.
//
// Work: both launches first group the pairs by expert (entries.cuh), then stream the weights of all entries through rings in shared
// memory (ring.cuh): gate_up.cuh, down.cuh. For one token gate_up needs no groups (gate_up_one.cuh).
//
// Overlap (9.0 and newer): the blocks of gate_up release the next launch only after their own wait, so when a block of down
// runs, the kernels before gate_up have ended and their writes (ids, router weights, the shared multiplier) lie in L2, where
// relaxed loads find them. So down reads those and its first weights before it waits for gate_up; act, and all writes, come
// after the wait.
//
// Needs: sm_80 or newer; at most the shared memory that a block can have.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/moe.h"
#include "gb10/types.h"

namespace gb10::moe_decode {

inline constexpr int kMaxExperts = 8192;
inline constexpr int kMaxWidth = 32768;  // of hidden and intermediate: one token fits the 99 KB of a block on 8.6, 8.9 and 12.x

using moe::Matrix;

struct Arguments : moe::Layer {
  void* act;  // workspace_bytes() of memory, at a multiple of 16
};

// Workspace for the results of the activation: 17 bits each.
constexpr std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t intermediate,
                                       std::int64_t shared_intermediate) {
  std::int64_t const values = tokens * (topk * intermediate + shared_intermediate);
  return 2 * values + values / 8;
}

// The two launches of one call, on one stream; more such pairs, for some of the tokens each, when the activations of all do not
// fit in shared memory.
cudaError_t launch(Arguments const& arguments, Number number, bool swizzled, cudaStream_t stream);

}  // namespace gb10::moe_decode
