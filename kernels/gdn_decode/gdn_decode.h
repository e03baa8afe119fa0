// The host's side of gdn_decode.cuh: what a launch needs.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::gdn_decode {

inline constexpr int kWidth = 4;             // taps of the convolution, the present token's too
inline constexpr int kMaxSteps = 8;          // tokens of a sequence in one call
inline constexpr int kMaxSequences = 65535;  // of a grid's last dimension
inline constexpr int kMaxHeads = 4096;
inline constexpr int kMaxSlots = 1 << 30;
inline constexpr int kMaxCluster = 8;  // blocks that every GPU with clusters can hold together
inline constexpr int kMaxGroup = 512;  // rows of state of all value heads of a key head: a cluster of blocks with 64

// Strides are in elements.
struct Arguments {
  void const* mixed;             // [rows, >= columns], mixed_row apart
  void* conv_state;              // [slots, channels, >= kWidth - 2 + steps], any strides
  void const* conv_weight;       // [channels, kWidth]
  void const* conv_bias;         // [channels] or null
  float const* log_decay;        // [value_heads], A_log
  void const* step_bias;         // [value_heads], dt_bias
  void* state;                   // [slots, value_heads, value_size, key_size], slots state_slot apart
  void const* norm_weight;       // [value_size]
  std::int32_t const* slots;     // [sequences, steps], any strides
  std::int32_t const* accepted;  // [sequences] or null
  std::int32_t const* starts;    // [sequences + 1] or null: each sequence has `steps` rows
  void* out;                     // [rows, value_heads * value_size]
  int mixed_row, conv_slot, conv_channel, conv_tap, state_slot, slots_row, slots_step, accepted_row;
  float epsilon, query_scale;
  int rows, sequences, steps, slot_count, key_heads, value_heads, key_size, value_size;
  bool interleaved, float_step_bias, float_norm_weight;
  bool conv_pairs;  // two neighbouring channels of conv_state, the first even, are one aligned word

  // What prepare() adds.
  int ratio;               // value heads of a key head
  int split, split_shift;  // blocks of a value head, a power of 2
  float mean_factor;       // 1 / value_size
  // Columns: those of q begin at 0, and what belongs to a key head lies `stride` apart.
  int k_base, v_base, z_base, b_base, a_base, key_stride, value_stride, gate_stride;
};

// Blocks of so many rows of a head's state; where the columns are.
inline void prepare(Arguments& p, int rows) {
  p.ratio = p.value_heads / p.key_heads;
  p.split = p.value_size / rows;
  p.split_shift = p.split == 4 ? 2 : p.split - 1;
  p.mean_factor = 1.0f / static_cast<float>(p.value_size);
  int const values = p.ratio * p.value_size;          // of a key head
  int const apart = p.interleaved ? 1 : p.key_heads;  // heads from one kind of column to the next
  p.k_base = apart * p.key_size;
  p.v_base = 2 * p.k_base;
  p.z_base = p.v_base + apart * values;
  p.b_base = p.key_heads * (2 * p.key_size + 2 * values);
  p.a_base = p.b_base + apart * p.ratio;
  p.key_stride = p.interleaved ? 2 * p.key_size + 2 * values : p.key_size;
  p.value_stride = p.interleaved ? p.key_stride : values;
  p.gate_stride = (p.interleaved ? 2 : 1) * p.ratio;
}

// Launches on `stream` of the current device; gives the first CUDA error. `state`: kFloat32, or the same as `number`.
cudaError_t launch(Arguments arguments, Number number, Number state, cudaStream_t stream);

}  // namespace gb10::gdn_decode
