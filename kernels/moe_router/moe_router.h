// Which experts 1..16 tokens go to, in one launch; the residual and the norm before the router go along. Host's side.
//
//   r      = x + residual                                   (r = x without a residual)
//   normed = r / sqrt(mean of r^2 + epsilon) * (weight + 1 if norm_plus_one), rounded to the dtype; x without a norm weight
//   logit  = normed[token] . gate[expert], rounded to the dtype
//   ids    = the topk experts with the largest logits, largest first; of equal logits the lower expert first
//   weight = exp(logit - largest) over the sum of the same of all experts, or with renormalise of the chosen ones
//   shared_multiplier[token] = sigmoid(normed[token] . shared_gate)
//
// residual_out is r rounded to the dtype; the norm is of r as FP32, as vLLM's fused_add_rms_norm computes it. Sums are FP32, in an
// order that the shape decides. A token with a logit of NaN or infinity has ids within range and NaN weights.
//
// Shapes: x, residual, normed, residual_out [tokens, columns], bf16 or f16, all else of the model's in the same dtype;
// columns a multiple of 256.
//
// Work (moe_router.cuh): every block computes the logits of up to 8 experts for all tokens; so each computes the norm anew. The
// last blocks, one for each token, wait for the token's logits and choose. A logit travels as a key that is never 0, so it is
// its own signal: no fence, no counter. The workspace holds the keys, is all zeros between calls, and belongs to one stream.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::moe_router {

inline constexpr int kColumnUnit = 256;  // columns are a multiple of this
inline constexpr int kMaxColumns = 8192;
inline constexpr int kMaxExperts = 1024;

struct Arguments {
  void const* x;
  void const* residual;      // or null
  void const* norm_weight;   // [columns] or null
  void const* gate;          // [experts, columns]
  void const* shared_gate;   // [columns] or null
  std::uint32_t* keys;       // workspace_bytes() of zeros, at a multiple of 16
  std::int32_t* ids;         // [tokens, topk]
  float* weights;            // [tokens, topk]
  float* shared_multiplier;  // [tokens], null without shared_gate
  void* normed;              // or null
  void* residual_out;        // or null
  float epsilon;
  int tokens, columns, experts, topk;
  bool norm_plus_one, renormalise;
};

// Keys of a token, in numbers.
constexpr int key_stride(int experts) { return (experts + 3) / 4 * 4; }
constexpr std::int64_t workspace_bytes(std::int64_t tokens, int experts) { return tokens * key_stride(experts) * 4; }

// Launches on `stream` of the current device; gives the first CUDA error. With more than 32768 numbers in x (tokens rounded up to
// a power of two) some of the tokens at a time.
cudaError_t launch(Arguments const& arguments, Number number, cudaStream_t stream);

}  // namespace gb10::moe_router
