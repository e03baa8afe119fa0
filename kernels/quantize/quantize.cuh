// NVFP4 quantisation of activations: x to packed E2M1 codes and UE4M3 block scales, given the global scale g (float32).
//
//   block scale = UE4M3(clamp(max |x| / (6 g), 2^-9, 448))      over 16 values along K
//   code        = E2M1(x / (block scale * g))
//
// in float32, every operation rounded to nearest: bit for bit what gb10.nvfp4.quantize computes. g must be a positive number.
// What that function refuses follows from the same formula: a block with a NaN gets the scale NaN (0x7F) and the codes 7; a
// block with an infinity gets the scale 448, the infinities the codes of +-6.
//
// Shapes: x [rows, K] bf16, f16 or f32, K a multiple of 16; packed uint8 [rows, K / 2], the even k in the low nibble; scales one
// byte for 16 values: linear [rows, K / 16], or the 128x4 layout with its padding written as zero:
//   offset(r, c) = (r / 128 * ceil(C / 4) + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4,     C = K / 16
//
// Gated: x is [rows, 2 K], gate then up, and the values quantised are silu(gate) * up in float32, rounded to the dtype of x
// (as vLLM's fused operator rounds them). silu(v) = v * sigmoid(v), with e = exp2(-|v| * log2(e)) of the exponential unit and
// sigmoid = 1 / (1 + e) for v >= 0, e / (1 + e) below. Its relative error is at most 2^-20 + |v| 2^-23; below -87.3 it is -0.
//
// Experts: the rows of x are grouped by expert. Expert i has the rows expert_offsets[i] .. expert_offsets[i + 1] - 1, its own
// global scale, and its scales begin at row scale_offsets[i], a multiple of 128, of the 128x4 layout. Rows of `scales` between
// an expert's last row and scale_offsets[i + 1] are written as zero. Rows past the last expert are not touched.
//
// A thread does four blocks of 16 values (two of f32 in flat_kernel), 32 bytes (64 for f32) in and 8 + 1 bytes out each, and
// asks for all of them before it works on the first. Two kernels share the work:
//   flat_kernel  linear scales, not gated: the blocks of all rows in one line
//   tile_kernel  else. A warp takes 16 columns of the rows r, r + 1 and those 32, 64 and 96 below, a lane the four rows of one
//                column. Their scales fill whole 32-byte sectors of the 128x4 layout: four neighbouring lanes exchange theirs,
//                and each stores one word. With linear scales: 32 columns of four rows that follow each other.
//
// Needs: any GPU from sm_80 on. What bounds it: memory. 2 K + K / 2 + K / 16 bytes a row for 16-bit inputs; the code for a block
// must stay well below 376 instructions to keep up with an H200's memory (tests/kernels counts them). Single bytes of
// swizzled scales would cost as many sectors as the codes: 75 % of a copy's speed, where whole sectors give 93 %.
#pragma once

#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/types.cuh"

#include "block.cuh"
#include "quantize.h"

namespace gb10::quantize {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kPart = 4;  // blocks of 16 values that a thread of tile_kernel does at once

template <typename T>
inline constexpr int kFlatPart = 8 / sizeof(T);  // and of flat_kernel

// Thread blocks of tile_kernel that must fit on a multiprocessor, which limits the registers: 80, 96 when gated, 128 when gated
// with linear scales (no more than that without spilling). f32 keeps twice the bytes in registers, and needs fewer threads to
// keep the memory busy.
template <typename T, Layout kLayout, bool kGated>
inline constexpr int kResident = sizeof(T) == 4               ? 1
                                 : !kGated                    ? 6
                                 : kLayout == Layout::kLinear ? 4
                                                              : 5;

// What a warp of tile_kernel covers.
template <Layout kLayout>
struct Tile {
  static constexpr bool kSwizzled = kLayout != Layout::kLinear;
  static constexpr int kColumns = kSwizzled ? 16 : 32;
  static constexpr int kRows = kPart * 32 / kColumns;
  static constexpr int kStep = kSwizzled ? 32 : 1;  // between the rows of a lane
};

__device__ __forceinline__ float silu(float v) {
  float const e = ptx::power_of_2(__fmul_rn(fabsf(v), -1.44269504f)), r = ptx::reciprocal(__fadd_rn(e, 1.0f));
  return __fmul_rn(v, v >= 0.0f ? r : __fmul_rn(e, r));
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return __fmul_rn(silu(gate), up); }

// Of two numbers in a word: their magnitudes; of two words: the larger ones, or NaN.
template <typename T>
__device__ __forceinline__ std::uint32_t magnitudes(std::uint32_t word) {
  return word_of(__habs2(pair_of<T>(word)));
}
template <typename T>
__device__ __forceinline__ std::uint32_t larger(std::uint32_t a, std::uint32_t b) {
  return word_of(__hmax2_nan(pair_of<T>(a), pair_of<T>(b)));
}

// Sixteen values as they lie in memory.
template <typename T>
struct Values {
  static constexpr int kWords = kBlock * sizeof(T) / 4;
  std::uint32_t words[kWords];

  __device__ __forceinline__ void load(T const* x) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      uint4 const quad = __ldg(reinterpret_cast<uint4 const*>(x) + i);
      words[4 * i] = quad.x, words[4 * i + 1] = quad.y, words[4 * i + 2] = quad.z, words[4 * i + 3] = quad.w;
    }
  }

  __device__ __forceinline__ float at(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else {
      float2 const pair = floats_of<T>(words[i / 2]);
      return i % 2 ? pair.y : pair.x;
    }
  }

  // The largest magnitude; NaN when there is a NaN.
  __device__ __forceinline__ float amax() const {
    if constexpr (sizeof(T) == 4) {
      float top = fabsf(at(0));
#pragma unroll
      for (int i = 1; i < kBlock; ++i) top = ptx::larger_or_nan(top, fabsf(at(i)));
      return top;
    } else {
      std::uint32_t top[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i] = larger<T>(magnitudes<T>(words[i]), magnitudes<T>(words[i + 4]));
      float2 const both = floats_of<T>(larger<T>(larger<T>(top[0], top[1]), larger<T>(top[2], top[3])));
      return ptx::larger_or_nan(both.x, both.y);
    }
  }

  // These values as gates: silu(this) * up, rounded to T.
  __device__ __forceinline__ void gate(Values const& up) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) words[i] = __float_as_uint(silu_mul(at(i), up.at(i)));
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        words[i] = word_of_floats<T>(silu_mul(at(2 * i), up.at(2 * i)), silu_mul(at(2 * i + 1), up.at(2 * i + 1)));
      }
    }
  }
};

// The formula as it stands, for the blocks that the short division does not cover: NaN, infinities, magnitudes beyond 2^20
// times 6 g, global scales beyond 2^+-60, and one divisor in 2^19. Reads the values again, so that the usual way keeps its
// registers.
template <typename T>
__device__ __noinline__ Quantized quantize_long(T const* x, T const* up, float global_scale) {
  Values<T> values;
  values.load(x);
  if (up != nullptr) {
    Values<T> ups;
    ups.load(up);
    values.gate(ups);
  }
  float const wanted = __fdiv_rn(values.amax(), __fmul_rn(6.0f, global_scale));
  Quantized out;
  out.scale = ue4m3::encode(wanted < ue4m3::kMinimum ? ue4m3::kMinimum : wanted);
  float const step = __fmul_rn(ue4m3::decode(out.scale), global_scale);
  float low[8], high[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    low[i] = __fdiv_rn(values.at(i), step);
    high[i] = __fdiv_rn(values.at(i + 8), step);
  }
  out.low = e2m1::encode8(low);
  out.high = e2m1::encode8(high);
  return out;
}

// `values` are those of x, gated already; x and up are where they came from.
template <typename T>
__device__ __forceinline__ Quantized quantize_block(Values<T> const& values, Global const& global, T const* x, T const* up) {
  Quantized out;
  if (!quantize_short(out, values, values.amax(), global)) out = quantize_long(x, up, global.scale);
  return out;
}

// A thread block takes `span` blocks of 16 values, at most kThreads * kFlatPart. Rows follow each other without a gap in x, packed
// and scales: no need to tell them apart.
template <typename T>
__global__ void __launch_bounds__(kThreads) flat_kernel(Problem const p, int const span) {
  int const thread = threadIdx.x;
  std::int64_t const begin = static_cast<std::int64_t>(blockIdx.x) * span;
  std::int64_t const left = static_cast<std::int64_t>(p.rows) * p.columns - begin;
  int const count = left < span ? static_cast<int>(left) : span;
  std::int64_t const first = begin + thread;
  T const* const x = static_cast<T const*>(p.x) + first * kBlock;
  Values<T> values[kFlatPart<T>];
#pragma unroll
  for (int j = 0; j < kFlatPart<T>; ++j) {
    if (thread + j * kThreads < count) values[j].load(x + j * kThreads * kBlock);
  }
  Global const global = prepare(__ldg(p.global_scales));
#pragma unroll
  for (int j = 0; j < kFlatPart<T>; ++j) {
    if (thread + j * kThreads < count) {
      Quantized const out = quantize_block<T>(values[j], global, x + j * kThreads * kBlock, nullptr);
      reinterpret_cast<uint2*>(p.packed)[first + j * kThreads] = make_uint2(out.low, out.high);
      p.scales[first + j * kThreads] = static_cast<std::uint8_t>(out.scale);
    }
  }
}

// The last expert whose scales begin at row `tile_row` or before; -1 without one. The same for all lanes of the warp.
__device__ __forceinline__ int expert_of(Problem const& p, int tile_row, int lane) {
  constexpr int kAtOnce = 4;
  int count = 0;
#pragma unroll 1
  for (int first = 0; first <= count && first < p.experts; first += 32 * kAtOnce) {
    bool begun[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      int const i = first + 32 * j + lane;
      begun[j] = i < p.experts && __ldg(p.scale_offsets + i) <= tile_row;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) count += __popc(__ballot_sync(0xFFFFFFFFu, begun[j]));
  }
  return count - 1;
}

// Byte j of the word of lane i goes to byte i of the word of lane j, in each four lanes.
__device__ __forceinline__ std::uint32_t transpose(std::uint32_t word, int lane) {
  std::uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, word, 1);
  word = __byte_perm(word, other, lane & 1 ? 0x3715 : 0x6240);
  other = __shfl_xor_sync(0xFFFFFFFFu, word, 2);
  return __byte_perm(word, other, lane & 2 ? 0x3276 : 0x5410);
}

// What a lane does: the rows row + j kStep below `end` of x, in one column. Their scales belong to scale_row + j kStep.
struct Place {
  int row, end, scale_row;
  Global global;
};

template <typename T, Layout kLayout, bool kGated>
__device__ __forceinline__ void quantize_column(Problem const& p, Place const& place, int column) {
  using Warp = Tile<kLayout>;
  int const end = column < p.columns ? place.end : 0;
  std::int64_t const index = static_cast<std::int64_t>(place.row) * p.columns + column;
  std::int64_t const step = static_cast<std::int64_t>(Warp::kStep) * p.columns;
  // Gated: a row of gates and a row of ups precede for every row above.
  std::int64_t const x_index = kGated ? index + static_cast<std::int64_t>(place.row) * p.columns : index;
  std::int64_t const x_step = step * (kGated ? 2 * kBlock : kBlock), up = static_cast<std::int64_t>(p.columns) * kBlock;
  T const* const x = static_cast<T const*>(p.x) + x_index * kBlock;
  Values<T> values[kPart], ups[kGated ? kPart : 1];
#pragma unroll
  for (int j = 0; j < kPart; ++j) {
    int const r = place.row + j * Warp::kStep;
    if (r >= 0 && r < end) {
      values[j].load(x + j * x_step);
      if constexpr (kGated) ups[j].load(x + j * x_step + up);
    }
  }
  std::uint32_t scales = 0;  // byte j is that of row j
#pragma unroll
  for (int j = 0; j < kPart; ++j) {
    int const r = place.row + j * Warp::kStep;
    if (r >= 0 && r < end) {
      T const* const from = x + j * x_step;
      if constexpr (kGated) values[j].gate(ups[j]);
      Quantized const out = quantize_block<T>(values[j], place.global, from, kGated ? from + up : nullptr);
      reinterpret_cast<uint2*>(p.packed)[index + j * step] = make_uint2(out.low, out.high);
      if constexpr (Warp::kSwizzled) {
        scales |= out.scale << (8 * j);
      } else {
        p.scales[index + j * step] = static_cast<std::uint8_t>(out.scale);
      }
    }
  }
  if constexpr (Warp::kSwizzled) {
    // Now lane j of four has the row j of all four columns. The next four columns are 512 bytes on.
    scales = transpose(scales, threadIdx.x % 4);
    int const columns = (p.columns + 3) & ~3, inner = place.scale_row % 32 * 16 + column % 4 * 4;
    std::int64_t const tile = static_cast<std::int64_t>(place.scale_row / 128) * columns * 128 + column / 4 * 512;
    if (column < columns) *reinterpret_cast<std::uint32_t*>(p.scales + tile + inner) = scales;
  }
}

template <typename T, Layout kLayout, bool kGated>
__global__ void __launch_bounds__(kThreads, (kResident<T, kLayout, kGated>)) tile_kernel(Problem const p) {
  using Warp = Tile<kLayout>;
  int const lane = threadIdx.x % 32;
  int const group = (blockIdx.z * gridDim.y + blockIdx.y) * kWarps + threadIdx.x / 32;
  if (group > (p.scale_rows - 1) / Warp::kRows) return;  // the whole warp
  Place place;
  place.scale_row = Warp::kSwizzled ? group / 16 * 128 + group % 16 * 2 + lane / 16 : group * Warp::kRows;
  if constexpr (kLayout != Layout::kExperts) {
    place.row = place.scale_row;
    place.end = p.rows;
    place.global = prepare(__ldg(p.global_scales));
    quantize_column<T, kLayout, kGated>(p, place, blockIdx.x * Warp::kColumns + lane % Warp::kColumns);
  } else {
    int const tile_row = place.scale_row / 128 * 128, last = __ldg(p.scale_offsets + p.experts);
    int const found = expert_of(p, tile_row, lane), expert = max(found, 0);
    int const begin = __ldg(p.scale_offsets + expert), from = __ldg(p.expert_offsets + expert);
    int const next = __ldg(p.expert_offsets + expert + 1);
    if (found < 0 || tile_row >= last) return;
    place.row = place.scale_row - begin + from;
    place.end = min(p.rows, next);
    place.global = prepare(__ldg(p.global_scales + expert));
    // To find the expert takes as long as a column does, so it is done once for some columns.
    int const parts = (p.columns + Warp::kColumns - 1) / Warp::kColumns;
#pragma unroll 1
    for (int part = blockIdx.x; part < parts; part += gridDim.x) {
      quantize_column<T, kLayout, kGated>(p, place, part * Warp::kColumns + lane % Warp::kColumns);
    }
  }
}

}  // namespace gb10::quantize
