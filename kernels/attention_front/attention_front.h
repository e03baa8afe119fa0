// Attention between its projection and the attention itself, in one launch, and the output gate after it. Host's side.
//
// A row of qkv has for each head q [head_size], with a gate q [head_size] gate [head_size]; then k of all kv heads, then v.
//   n      = x / sqrt(mean of x^2 + epsilon) * (weight + 1)     of each head of q and of k, rounded to the dtype; without
//                                                               norm_plus_one rounded, times weight, rounded
//   y[i]   = n[i] * cos[i] - n[i + half] * sin[i]               i < half = rotary / 2, rounded to the dtype
//   y[i + half] = n[i + half] * cos[i] + n[i] * sin[i]          y = n from `rotary` on
//   query  = y of q: as it is, or as E4M3 of y * (1 / q_scale)
//   key    = y of k: as it is in key_out, and in the cache as it is or as E4M3 of y / k_scale; v / v_scale in the other cache
// cos and sin are the halves of row `position` of cos_sin. With three rows of positions (time, height, width) number i goes by
// height where i % 3 = 1 and i < 3 * height_section, by width where i % 3 = 2 and i < 3 * width_section: vLLM's interleaved
// MRoPE. Places of rounding are those of vLLM 0.32.0 (fused_qk_rmsnorm_rope_gate, QuantFP8, reshape_and_cache_flash).
//
// Slot s is token s % block_size of block s / block_size. Tokens beyond the slots, and slots that do not exist (-1 is padding),
// write no cache. A position that does not exist is the nearest that does.
//
// The gate: out[i] = out[i] * sigmoid(gate[i]), rounded once.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::attention_front {

inline constexpr int kMaxTokens = 1 << 20;
inline constexpr int kMaxHeads = 1024;     // of q and k and v together
inline constexpr int kWarps = 4;           // of a block: each has one head of one token
inline constexpr int kMaxHeadSize = 1024;  // of the gate

struct Arguments {
  void const* qkv;
  void const* q_weight;           // [head_size]
  void const* k_weight;           // [head_size]
  void const* cos_sin;            // [position_count, rotary]
  std::int32_t const* positions;  // the low words, if they have two
  void* query;                    // [tokens, heads, head_size] of the dtype, or E4M3
  void* key_out;                  // [tokens, kv_heads, head_size] or null
  void* key_cache;                // null: no cache is written
  void* value_cache;
  std::int64_t const* slots;
  float const* q_scale;  // null: query is of the dtype
  float const* k_scale;  // null: the cache is of the dtype
  float const* v_scale;
  std::int64_t qkv_row;  // strides, in elements
  std::int64_t key_block, key_token, key_head, value_block, value_token, value_head;
  int position_token, position_row;  // strides, in words; row 0: one row of positions
  int height_section, width_section;
  int tokens, heads, kv_heads, head_size, rotary, position_count;
  int slot_count, blocks, block_size;
  float epsilon;
  bool norm_plus_one, gated;
};

// Both launch on `stream` of the current device and give the first CUDA error.
cudaError_t launch(Arguments const& arguments, Number number, cudaStream_t stream);

struct GateArguments {
  void* out;               // [tokens, heads, head_size]
  void const* gates;       // the same
  std::int64_t row, head;  // strides of the gates, in elements
  int tokens, heads, head_size;
};
cudaError_t launch_gate(GateArguments const& arguments, Number number, cudaStream_t stream);

}  // namespace gb10::attention_front
