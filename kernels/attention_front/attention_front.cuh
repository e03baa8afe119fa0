// The kernels of attention_front.h: a warp has one head of one token, a lane kVector numbers next to each other.
//
// Needs 8.9 for E4M3 in one instruction. From 9.0 on the norms' weights are read before the kernel ahead in the stream has ended,
// so that kernel must not write them. So are a position and its cosines, which are read again after the wait where the position
// has changed. `front` lets no next kernel begin before its end: what follows is not ours.
#pragma once

#include <cstdint>

#include <cuda_fp8.h>

#include "attention_front.h"
#include "gb10/ptx.cuh"
#include "gb10/vectors.cuh"

namespace gb10::attention_front {

inline constexpr int kGateThreads = 128;

// The cosines and sines of a lane's numbers; of lanes that do not rotate, nothing.
template <int kVector>
struct Angles {
  Vector<kVector> cosines, sines;
};

// Where a token's numbers are rotated to: in time, height and width; the same three with one row of positions.
struct Position {
  int time, height, width;

  __device__ __forceinline__ Position(Arguments const& p, int token) {
    auto const* const first = p.positions + static_cast<std::int64_t>(token) * p.position_token;
    auto const existing = [&](int position) { return max(0, min(position, p.position_count - 1)); };
    time = height = width = existing(ptx::load_relaxed(first));
    if (p.position_row) {
      height = existing(ptx::load_relaxed(first + p.position_row));
      width = existing(ptx::load_relaxed(first + 2 * p.position_row));
    }
  }
  __device__ __forceinline__ bool operator==(Position const& other) const {
    return time == other.time && height == other.height && width == other.width;
  }
  __device__ __forceinline__ int of(Arguments const& p, int i) const {
    if (i % 3 == 1 && i < 3 * p.height_section) return height;
    return i % 3 == 2 && i < 3 * p.width_section ? width : time;
  }
};

template <int kVector>
__device__ __forceinline__ void load_ahead(Vector<kVector>& v, void const* address) {
  if constexpr (kVector == 8) ptx::load_ahead(*reinterpret_cast<uint4*>(&v), address);
  else if constexpr (kVector == 4) ptx::load_ahead(*reinterpret_cast<uint2*>(&v), address);
  else ptx::load_ahead(*reinterpret_cast<std::uint32_t*>(&v), address);
}

// first: the number of the lane's first angle.
template <typename T, int kVector>
__device__ __forceinline__ void load_angles(Angles<kVector>& angles, Arguments const& p, Position const& position, int first) {
  int const half = p.rotary / 2;
  auto const* const table = static_cast<T const*>(p.cos_sin);
  if (p.position_row == 0) {
    auto const* const row = table + static_cast<std::int64_t>(position.time) * p.rotary + first;
    load_ahead(angles.cosines, row);
    load_ahead(angles.sines, row + half);
    return;
  }
  auto const* const bits = reinterpret_cast<std::uint16_t const*>(table);
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    auto const* const low = bits + static_cast<std::int64_t>(position.of(p, first + 2 * i)) * p.rotary + first + 2 * i;
    auto const* const high = bits + static_cast<std::int64_t>(position.of(p, first + 2 * i + 1)) * p.rotary + first + 2 * i + 1;
    angles.cosines.words[i] = __ldg(low) | static_cast<std::uint32_t>(__ldg(high)) << 16;
    angles.sines.words[i] = __ldg(low + half) | static_cast<std::uint32_t>(__ldg(high + half)) << 16;
  }
}

// As E4M3, numbers beyond its range as the largest.
template <int kVector>
__device__ __forceinline__ void store_e4m3(void* place, float const (&values)[kVector]) {
  static_assert(kVector % 2 == 0);
  struct alignas(kVector) {
    std::uint16_t pairs[kVector / 2];
  } bytes;
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    bytes.pairs[i] = __nv_cvt_float2_to_fp8x2({values[2 * i], values[2 * i + 1]}, __NV_SATFINITE, __NV_E4M3);
  }
  *static_cast<decltype(bytes)*>(place) = bytes;
}

// Grid: tokens, blocks of kWarps heads: those of q, of k, of v.
template <typename T, int kVector>
__global__ void __launch_bounds__(32 * kWarps) front(__grid_constant__ Arguments const p) {
  int const lane = threadIdx.x % 32, warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  int const token = blockIdx.x, unit = blockIdx.y * kWarps + warp;
  constexpr int kHeadSize = 32 * kVector;
  int const within = lane * kVector;
  if (unit >= p.heads + 2 * p.kv_heads) return;
  bool const is_query = unit < p.heads, is_value = unit >= p.heads + p.kv_heads;
  int const head = is_query ? unit : unit - p.heads - (is_value ? p.kv_heads : 0);

  // Lanes from `shift` to 2 * shift have the second halves of the numbers that rotate.
  int const shift = p.rotary / 2 / kVector;
  bool const rotates = lane < 2 * shift && !is_value, second = lane >= shift;
  int const angle = within - (second ? p.rotary / 2 : 0);
  Vector<kVector> weight{};
  Angles<kVector> angles{};
  Position early(p, token);
  if (!is_value) load_ahead(weight, static_cast<T const*>(is_query ? p.q_weight : p.k_weight) + within);
  if (rotates) load_angles<T>(angles, p, early, angle);
  ptx::wait_for_previous();

  int const columns = is_query ? unit * (p.gated ? 2 : 1) : p.heads * (p.gated ? 2 : 1) + unit - p.heads;
  auto const* const from =
      static_cast<T const*>(p.qkv) + token * p.qkv_row + static_cast<std::int64_t>(columns) * kHeadSize + within;
  Vector<kVector> raw = *reinterpret_cast<Vector<kVector> const*>(from);
  std::int64_t const slot = !is_query && p.key_cache != nullptr && token < p.slot_count ? p.slots[token] : -1;
  float const* const scales = is_query ? p.q_scale : is_value ? p.v_scale : p.k_scale;
  float const scale_of_8 = scales != nullptr ? *scales : 1.0f;
  float values[kVector];
  if (!is_value) {
    Position const position(p, token);
    if (rotates && !(position == early)) load_angles<T>(angles, p, position, angle);
    unpack<T>(raw, values);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fmaf(values[i], values[i], sum);
    float const scale = rsqrtf(sum_of_warp(sum) / kHeadSize + p.epsilon);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] *= scale;
    scale_norm<T>(values, weight, p.norm_plus_one);
    round_to<T>(values);
    float cosines[kVector], sines[kVector];
    unpack<T>(angles.cosines, cosines);
    unpack<T>(angles.sines, sines);
    int const partner = rotates ? (second ? lane - shift : lane + shift) : lane;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float const other = __shfl_sync(0xFFFFFFFFu, values[i], partner);
      if (rotates) values[i] = second ? values[i] * cosines[i] + other * sines[i] : values[i] * cosines[i] - other * sines[i];
    }
    raw = pack<T>(values);
  }

  if (is_query) {
    std::int64_t const place = (static_cast<std::int64_t>(token) * p.heads + head) * kHeadSize + within;
    if (scales == nullptr) {
      *reinterpret_cast<Vector<kVector>*>(static_cast<T*>(p.query) + place) = raw;
    } else {
      float const factor = 1.0f / scale_of_8;
      unpack<T>(raw, values);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] *= factor;
      store_e4m3(static_cast<std::uint8_t*>(p.query) + place, values);
    }
    return;
  }
  if (!is_value && p.key_out != nullptr) {
    std::int64_t const place = (static_cast<std::int64_t>(token) * p.kv_heads + head) * kHeadSize + within;
    *reinterpret_cast<Vector<kVector>*>(static_cast<T*>(p.key_out) + place) = raw;
  }
  if (slot < 0 || slot >= static_cast<std::int64_t>(p.blocks) * p.block_size) return;
  std::int64_t const block = slot / p.block_size, in_block = slot - block * p.block_size;
  std::int64_t const place = is_value ? block * p.value_block + in_block * p.value_token + head * p.value_head + within
                                      : block * p.key_block + in_block * p.key_token + head * p.key_head + within;
  void* const cache = is_value ? p.value_cache : p.key_cache;
  if (scales == nullptr) {
    *reinterpret_cast<Vector<kVector>*>(static_cast<T*>(cache) + place) = raw;
  } else {
    unpack<T>(raw, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] /= scale_of_8;
    store_e4m3(static_cast<std::uint8_t*>(cache) + place, values);
  }
}

// Grid: tokens, blocks of kGateThreads vectors.
template <typename T>
__global__ void __launch_bounds__(kGateThreads) gate(__grid_constant__ GateArguments const p) {
  constexpr int kVector = 8;
  ptx::release_next();
  int const i = (blockIdx.y * kGateThreads + threadIdx.x) * kVector, columns = p.heads * p.head_size;
  if (i >= columns) return;
  ptx::wait_for_previous();
  auto* const out =
      reinterpret_cast<Vector<kVector>*>(static_cast<T*>(p.out) + static_cast<std::int64_t>(blockIdx.x) * columns + i);
  auto const* const gates = static_cast<T const*>(p.gates) + blockIdx.x * p.row + i / p.head_size * p.head + i % p.head_size;
  float values[kVector], inputs[kVector];
  unpack<T>(*out, values);
  unpack<T>(*reinterpret_cast<Vector<kVector> const*>(gates), inputs);
#pragma unroll
  for (int j = 0; j < kVector; ++j) values[j] *= 1.0f / (1.0f + __expf(-inputs[j]));
  *out = pack<T>(values);
}

}  // namespace gb10::attention_front
