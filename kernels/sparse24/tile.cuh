// One packed tile of a weight kept 2 of 4 (16 rows x 256 k), decoded and multiplied by a warp. The packed form and the matrix
// instruction are described in sparse24.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/arch.cuh"
#include "gb10/mma.cuh"
#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "gb10/w4a16.cuh"
#include "sparse24.h"

namespace gb10::sparse24 {

// Eight 3-bit position codes to eight pairs of 2-bit positions: a byte permutation is a look-up of four codes at once. Codes 6
// and 7 do not occur in packed weights; they read as 0.
__device__ __forceinline__ std::uint32_t metadata_of(std::uint32_t slots) {
  std::uint32_t const codes = slots & 0x77777777u;
  return __byte_perm(0x090C0804u, 0x04040E0Du, codes) | __byte_perm(0x90C08040u, 0x4040E0D0u, codes >> 16);
}

// Word `i` of a lane's four, from the three that are stored.
__device__ __forceinline__ std::uint32_t position_slots(std::uint32_t const (&words)[3], int i) {
  if (i < 3) return words[i];
  return (words[0] >> 3 & 0x11111111u) | (words[1] >> 2 & 0x22222222u) | (words[2] >> 1 & 0x44444444u);
}

// A word of values to the instruction's four words of a, 2^-14 of the value. As f16 a code is its sign in bit 15 and its
// magnitude in bits 11..9, all in the upper byte.
__device__ __forceinline__ void decode(std::uint32_t q, std::uint32_t (&a)[4]) {
  std::uint32_t const second = ((q << 7) & 0x80808080u) | ((q >> 3) & 0x0E0E0E0Eu);
  a[0] = (q << 8) & 0x8E008E00u;
  a[1] = second << 8 & 0xFF00FF00u;
  a[2] = q & 0x8E008E00u;
  a[3] = second & 0xFF00FF00u;
}

// Block scales 2 * pair and 2 * pair + 1 of a word of four, times 128: the product with decode()'s is 1 / 128 of the weight.
__device__ __forceinline__ __half2 scale_pair(std::uint32_t scales, int pair) {
  std::uint32_t out;
#if GB10_HW_E4M3
  out = mul2<__half>(ptx::from_e4m3(static_cast<std::uint16_t>(scales >> (16 * pair))), twice(0x5800));
#else
  // As f16 bits in 13..7 a byte is 2^-8 of the scale, subnormals too.
  out = mul2<__half>(__byte_perm(scales, 0, pair ? 0x4342 : 0x4140) << 7, twice(0x7800));
#endif
  return pair_of<__half>(out);
}

// What a thread holds of one tile.
struct Tile {
  uint4 values[2];
  std::uint32_t positions[3];
  std::uint32_t scales[2];
};

// Where a thread reads in tile 0 of a stack of packed tiles.
class TilePointers {
 public:
  __device__ __forceinline__ TilePointers(Packed const& weight, int lane)
      : values_(weight.values + 16 * lane),
        positions_(weight.positions + 8 * lane),
        last_positions_(weight.positions + 256 + 4 * lane),
        scales_(weight.scales + 8 * lane) {}

  // Starts the loads of tile `at` + kNext.
  template <int kNext = 0>
  __device__ __forceinline__ void load(Tile& tile, std::uint32_t at) const {
    std::uint64_t const wide = at;
    std::uint8_t const* const values = values_ + wide * kTileValueBytes + kNext * kTileValueBytes;
    uint2 first, both;
    ptx::load_weights(tile.values[0], values);
    ptx::load_weights(tile.values[1], values + 512);
    ptx::load_weights(first, positions_ + wide * kTilePositionBytes + kNext * kTilePositionBytes);
    tile.positions[0] = first.x;
    tile.positions[1] = first.y;
    ptx::load_weights(tile.positions[2], last_positions_ + wide * kTilePositionBytes + kNext * kTilePositionBytes);
    ptx::load_weights(both, scales_ + wide * kTileScaleBytes + kNext * kTileScaleBytes);
    tile.scales[0] = both.x;
    tile.scales[1] = both.y;
  }

 private:
  std::uint8_t const* values_;
  std::uint8_t const* positions_;
  std::uint8_t const* last_positions_;
  std::uint8_t const* scales_;
};

// Activations in shared memory as f16, for each row (a token) tiles of 256 k: for each instruction j, 32 numbers and 8 of padding;
// number 8 t + 2 r + p is row 8 r + 2 t + p of the instruction's b. Rows are 64 bytes past a multiple of 128 apart, so that the
// 8 lanes of a quarter warp (2 rows, 64 bytes each) read different banks.
inline constexpr int kInstructionStride = 40;
inline constexpr int kXTile = 8 * kInstructionStride;
__host__ __device__ constexpr int column_tiles(int columns) { return (columns + kTileColumns - 1) / kTileColumns; }
__host__ __device__ constexpr int row_stride(int columns) { return column_tiles(columns) * kXTile + 32; }

// Eight numbers as they come from memory, and as floats.
template <typename T>
struct Eight {
  uint4 words = {0, 0, 0, 0};
  __device__ __forceinline__ void load(T const* from) { words = *reinterpret_cast<uint4 const*>(from); }
};

template <>
struct Eight<float> {
  float4 low = {0.0f, 0.0f, 0.0f, 0.0f}, high = {0.0f, 0.0f, 0.0f, 0.0f};
  __device__ __forceinline__ void load(float const* from) {
    low = __ldcg(reinterpret_cast<float4 const*>(from));
    high = __ldcg(reinterpret_cast<float4 const*>(from + 4));
  }
};

// Activations are multiplied in f16, each token's times the power of two of w4a16.cuh; that is exact for all f16 and bf16 numbers
// down to 2^-32 of the largest. peak is the largest magnitude as the bits of a float.
__device__ __forceinline__ float to_f16_range(std::uint32_t peak) { return w4a16::power_to(w4a16::exponent_of(peak >> 23)); }
__device__ __forceinline__ float from_f16_range(std::uint32_t peak) { return w4a16::power_back(w4a16::exponent_of(peak >> 23)); }

// Where a row of activations comes from; token names its peak. Without `from` the row is zeros.
template <typename T>
struct Source {
  T const* from;
  float factor;
  int token;
};

// Where 8 consecutive numbers of a row lie: they are groups A and B of lane n, instruction j, that is rows 4 n .. 4 n + 3 and 16
// more of b. Word w of the four lies at offset_of(w).
__device__ __forceinline__ int place_of(int group) {
  return group / 32 * kXTile + group % 8 * kInstructionStride + group / 8 % 2 * 16 + group / 16 % 2 * 2;
}
__device__ __forceinline__ constexpr int offset_of(int word) { return word % 2 * 8 + word / 2 * 4; }

__device__ __forceinline__ std::uint32_t half_pair(float2 v, float factor) {
  return word_of_floats<__half>(v.x * factor, v.y * factor);
}

// Makes a token's peak what eight numbers a lane ask for. All lanes of a warp have the same row: a row has a multiple of 32 eights.
__device__ __forceinline__ void note(std::uint32_t& peak, float2 const (&pairs)[4]) {
  float largest = 0.0f;
#pragma unroll
  for (int w = 0; w < 4; ++w) largest = fmaxf(largest, fmaxf(fabsf(pairs[w].x), fabsf(pairs[w].y)));
  std::uint32_t const all = __reduce_max_sync(0xFFFFFFFFu, __float_as_uint(largest));
  if (threadIdx.x % 32 == 0) atomicMax(&peak, all);
}

// stage() for at most kMost eights a thread of 16-bit numbers.
template <typename T, int kMost, typename Row>
__device__ __forceinline__ void stage_few(__half* activations, std::uint32_t* peak, int total, int columns, Row&& row) {
  int const groups = column_tiles(columns) * (kTileColumns / 8), stride = row_stride(columns);
  Eight<T> v[kMost];
  int token[kMost] = {}, r[kMost] = {};
#pragma unroll
  for (int d = 0; d < kMost; ++d) {
    int const i = threadIdx.x + d * blockDim.x;
    if (i >= total) break;
    r[d] = i / groups;
    int const column = (i - r[d] * groups) * 8;
    auto const source = row(r[d]);
    token[d] = source.token;
    if (column < columns) v[d].load(source.from + column);
  }
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
    for (int d = 0; d < kMost; ++d) {
      int const i = threadIdx.x + d * blockDim.x;
      if (i >= total) break;
      float2 const pairs[4] = {floats_of<T>(v[d].words.x), floats_of<T>(v[d].words.y), floats_of<T>(v[d].words.z),
                               floats_of<T>(v[d].words.w)};
      if (pass == 0) {
        note(peak[token[d]], pairs);
      } else {
        float const factor = to_f16_range(peak[token[d]]);
        __half* const at = activations + r[d] * stride + place_of(i - r[d] * groups);
#pragma unroll
        for (int w = 0; w < 4; ++w) *reinterpret_cast<std::uint32_t*>(at + offset_of(w)) = half_pair(pairs[w], factor);
      }
    }
    __syncthreads();
  }
}

// Brings `rows` rows of `columns` numbers to shared memory, zeros past the last column. Called by all threads of the block; peak
// [tokens] is zero before (and a barrier lies between), and holds each token's afterwards. row(i) is the Source of row i; its
// factor is for float32 only. 16-bit numbers are read once: they lie in shared memory as they are until the peaks are known.
template <typename T, typename Row>
__device__ __forceinline__ void stage(__half* activations, std::uint32_t* peak, int rows, int columns, Row&& row) {
  constexpr bool kOnce = sizeof(T) == 2;
  constexpr int kDepth = kOnce ? 8 : 4;  // loads of a thread in flight
  int const groups = column_tiles(columns) * (kTileColumns / 8), total = rows * groups, stride = row_stride(columns);
  int const threads = blockDim.x;
  if constexpr (kOnce) {
    if (total <= 2 * threads) {  // so few that they can stay in registers
      stage_few<T, 2>(activations, peak, total, columns, row);
      return;
    }
  }
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 0 || !kOnce) {
      for (int begin = threadIdx.x; begin < total; begin += kDepth * threads) {
        Eight<T> v[kDepth];
        Source<T> source[kDepth];
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
          int const i = begin + d * threads, r = i / groups, column = (i - r * groups) * 8;
          source[d] = Source<T>{nullptr, 0.0f, 0};
          if (i < total) source[d] = row(r);
          if (source[d].from != nullptr && column < columns) v[d].load(source[d].from + column);
        }
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
          int const i = begin + d * threads;
          if (i >= total) break;
          int const r = i / groups;
          __half* const at = activations + r * stride + place_of(i - r * groups);
          float2 pairs[4];
          if constexpr (kOnce) {
            std::uint32_t const words[4] = {v[d].words.x, v[d].words.y, v[d].words.z, v[d].words.w};
#pragma unroll
            for (int w = 0; w < 4; ++w) {
              pairs[w] = floats_of<T>(words[w]);
              *reinterpret_cast<std::uint32_t*>(at + offset_of(w)) = words[w];
            }
          } else {
            float const f = source[d].factor;
            pairs[0] = {v[d].low.x * f, v[d].low.y * f};
            pairs[1] = {v[d].low.z * f, v[d].low.w * f};
            pairs[2] = {v[d].high.x * f, v[d].high.y * f};
            pairs[3] = {v[d].high.z * f, v[d].high.w * f};
          }
          if (pass == 0) {
            note(peak[source[d].token], pairs);
          } else {
            float const factor = to_f16_range(peak[source[d].token]);
#pragma unroll
            for (int w = 0; w < 4; ++w) *reinterpret_cast<std::uint32_t*>(at + offset_of(w)) = half_pair(pairs[w], factor);
          }
        }
      }
    } else {
      // Each thread changes what it wrote itself.
      for (int i = threadIdx.x; i < total; i += threads) {
        int const r = i / groups;
        float const factor = to_f16_range(peak[row(r).token]);
        __half* const at = activations + r * stride + place_of(i - r * groups);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          auto* const word = reinterpret_cast<std::uint32_t*>(at + offset_of(w));
          if constexpr (kOnce) *word = half_pair(floats_of<T>(*word), factor);
        }
      }
    }
    __syncthreads();
  }
}

// c[kFirst + i] += tile * x[i], 1 / 128 of it. x[i]: this thread's first number of the tile in shared memory, of token group i.
// With one group the sum is kept in two parts, so that the matrix instructions wait less for each other.
template <int kGroups, int kFirst = 0, int kSums>
__device__ __forceinline__ void multiply(float (&c)[kSums][4], Tile const& tile, __half const* const (&x)[kGroups]) {
  std::uint32_t const words[8] = {tile.values[0].x, tile.values[0].y, tile.values[0].z, tile.values[0].w,
                                  tile.values[1].x, tile.values[1].y, tile.values[1].z, tile.values[1].w};
  float second[4] = {};
  __half2 pairs[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t const metadata = metadata_of(position_slots(tile.positions, i));
    if (i % 2 == 0) {
      pairs[0] = scale_pair(tile.scales[0], i / 2);
      pairs[1] = scale_pair(tile.scales[1], i / 2);
    }
#pragma unroll
    for (int selector = 0; selector < 2; ++selector) {
      std::uint32_t a[4];
      decode(words[2 * i + selector], a);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        __half2 const scale = i % 2 ? __high2half2(pairs[r % 2]) : __low2half2(pairs[r % 2]);
        a[r] = word_of(__hmul2(pair_of<__half>(a[r]), scale));
      }
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        uint4 const b = *reinterpret_cast<uint4 const*>(x[group] + (2 * i + selector) * kInstructionStride);
        if (selector == 0) mma_sp_m16n8k32<0>(c[kFirst + group], a, b, metadata);
        else mma_sp_m16n8k32<1>(kGroups == 1 ? second : c[kFirst + group], a, b, metadata);
      }
    }
  }
  if constexpr (kGroups == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[kFirst][i] += second[i];
  }
}

}  // namespace gb10::sparse24
