// An NVFP4 weight of which 2 of every 4 consecutive k are kept (lossy, opt-in) times few vectors, at the speed of memory.
//
//   out[m, n] = global_scale * sum over kept k of x[m, k] * e2m1(n, k) * block_scale(n, k / 16)  +  bias[n]
//
// x [M, K] bf16 or f16, M = 1..16, K a multiple of 16; bias [N] and out [M, N] of x's dtype. Products are exact, sums are FP32
// and their order is fixed by the shape and the GPU: equal bits run to run.
//
// Bytes. 16 weights of dense NVFP4 are 8 bytes of codes and 1 of scale. Kept 2 of 4, they are 4 groups of two 4-bit values,
// two positions and the scale. As two 2-bit positions a group that is 4 + 2 + 1 = 7 of 9 bytes (77.8 %; 6 of 8, 75 %, without
// scales). But a pair of positions has only 6 cases: log2(6) = 2.58 bits a group would do (69.9 %). Here it is 3 bits:
// 4 + 1.5 + 1 = 6.5 of 9 bytes, 72.2 %. To go below 69.9 % the values would have to give up bits too.
//
//   position code   0       1       2       3       4       5
//   kept k          0, 1    0, 2    0, 3    1, 2    1, 3    2, 3
//
// The packed form is in the order of the sparse matrix instruction, which gathers x by itself. The weight, padded with zeros to
// 16 rows and 256 k, is cut into tiles of 16 x 256, row tiles outermost. With lane = 4 g + t, in a tile:
//   rows        a lane holds rows g and g + 8 and, of each, the 64 k (16 groups, 4 scales) that begin at 64 t
//   values      word j (0..7) of a lane is what it gives to instruction j: groups A = 2 j and B = 2 j + 1 of its 64 k. Bytes 0, 1:
//               the first kept value of A, of B; bytes 2, 3: the second. A byte has row g's sign in bit 7 and magnitude in 3..1,
//               row g + 8's sign in bit 0 and magnitude in 6..4: row g's are where the upper byte of an f16 has them.
//               Words 0..3 of all lanes (16 bytes a lane), then words 4..7.
//   positions   a lane holds those of lanes 4 g + n, n = 0..3, that the instruction wants from it. Word i (0..3), for the
//               instruction j = 2 i + t / 2 and its groups A (t even) or B (t odd): 4-bit slot n is row g, 4 + n row g + 8 of
//               lane 4 g + n; slots stand in the order 0, 2, 4, 6, 1, 3, 5, 7. A slot has a spare bit: word 3 is dealt out to
//               the spare bits of words 0, 1, 2 (bit b of its slots to word b). Words 0, 1 of all lanes, then words 2.
//   scales      a lane's 4 bytes of row g, then 4 of row g + 8
// Loads of a warp are 512, 512, 256, 128 and 256 consecutive bytes.
//
// mma.sp.m16n8k32 multiplies 16 rows x 32 k (half of them kept) with 8 tokens. Its A is like m16n8k16's: a thread gives two
// kept values of group t and of group 4 + t of the row's 8 groups. Bits 0..15 of a metadata word are 4 groups of row g, bits
// 16..31 the same of g + 8, lower group first, two increasing 2-bit positions each. With selector 0 lanes 4 g and 4 g + 1 give
// groups 0..3 and 4..7; with selector 1 lanes 4 g + 2 and 4 g + 3 do. So one word a lane serves two instructions.
//
// Numbers: activations are multiplied in f16, a token's times a power of two (tile.cuh). The loop over tiles is teams.cuh's: a unit
// is 256 k, a batch is two units, 104 bytes a thread.
// Bound by memory: 13 / 32 * K * N bytes. Needs sm_80; from 9.0 on weight, scales and bias are read before the kernel ahead in
// the stream has ended, so that kernel must not write them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/teams.cuh"
#include "sparse24.h"
#include "tile.cuh"

namespace gb10::sparse24 {

// Shared memory: the sums, peak[16], then the activations.
template <int kGroups, int kSlices, int kTeams, bool kTurns>
__host__ __device__ constexpr int sum_bytes() {
  return teams::sum_bytes<kGroups, kSlices, kTeams, kTurns>() + 4 * kMaxTokens;
}
template <int kGroups, int kSlices, int kTeams, bool kTurns>
constexpr std::size_t shared_bytes(int tokens, int columns) {
  return sum_bytes<kGroups, kSlices, kTeams, kTurns>() + static_cast<std::size_t>(2) * tokens * row_stride(columns);
}

template <typename T, int kGroups>
class Weights {
 public:
  static constexpr int kBatchUnits = 2;

  struct Batch {
    Tile tiles[kBatchUnits];
  };

  __device__ __forceinline__ Weights(Arguments const& p, std::uint32_t* peak, __half* activations)
      : p_(p),
        pointers_(p.weight, threadIdx.x % 32),
        peak_(peak),
        activations_(activations),
        column_tiles_(column_tiles(p.columns)) {
    int const g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    if (threadIdx.x < kMaxTokens) peak[threadIdx.x] = 0;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      // Columns of the product beyond the last token are never written: they may read any token.
      x_[j] = activations + min(8 * j + g, p.tokens - 1) * row_stride(p.columns) + 8 * t;
    }
  }

  __device__ __forceinline__ void load(Batch& batch, int tile, int unit, int end) const {
    std::uint32_t const at = static_cast<std::uint32_t>(tile) * column_tiles_ + unit;
    if (unit < end) pointers_.load(batch.tiles[0], at);
    if (unit + 1 < end) pointers_.template load<1>(batch.tiles[1], at);
  }

  __device__ __forceinline__ void multiply(float (&sum)[kGroups][4], Batch const& batch, int unit, int end) const {
#pragma unroll
    for (int u = 0; u < kBatchUnits; ++u) {
      if (unit + u < end) {
        __half const* x[kGroups];
#pragma unroll
        for (int j = 0; j < kGroups; ++j) x[j] = x_[j] + (unit + u) * kXTile;
        sparse24::multiply<kGroups>(sum, batch.tiles[u], x);
      }
    }
  }

  __device__ __forceinline__ void activations_ready() {
    float const unscale = w4a16::kUnscale * __ldg(p_.global_scale);
    __syncthreads();
    ptx::wait_for_previous();
    auto const* const x = static_cast<T const*>(p_.x);
    stage<T>(activations_, peak_, p_.tokens, p_.columns,
             [&](int row) { return Source<T>{x + static_cast<std::size_t>(row) * p_.columns, 1.0f, row}; });
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int const token = min(8 * j + 2 * static_cast<int>(threadIdx.x % 4) + i, p_.tokens - 1);
        unscale_[j][i] = from_f16_range(peak_[token]) * unscale;
      }
    }
  }

  __device__ __forceinline__ void read_rows(int tile) {
    if (p_.bias == nullptr) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const row = row_of(tile, i);
      if (row < p_.rows) bias_[i] = static_cast<float>(__ldg(static_cast<T const*>(p_.bias) + row));
    }
  }

  __device__ __forceinline__ void store(int tile, float const (&sum)[kGroups][4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const row = row_of(tile, i);
      if (row >= p_.rows) continue;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          int const token = 8 * j + 2 * static_cast<int>(threadIdx.x % 4) + v;
          if (token < p_.tokens) {
            static_cast<T*>(p_.out)[static_cast<std::size_t>(token) * p_.rows + row] =
                static_cast<T>(fmaf(sum[j][2 * i + v], unscale_[j][v], bias_[i]));
          }
        }
      }
    }
  }

 private:
  __device__ __forceinline__ int row_of(int tile, int i) const {
    return tile * kTileRows + static_cast<int>(threadIdx.x % 32 / 4) + 8 * i;
  }

  Arguments const& p_;
  TilePointers pointers_;
  std::uint32_t* peak_;
  __half* activations_;
  __half const* x_[kGroups];
  int column_tiles_;
  float unscale_[kGroups][2];
  float bias_[2] = {};
};

template <typename T, int kGroups, int kSlices, int kTeams, bool kTurns, int kBlocks>
__global__ void __launch_bounds__(32 * kSlices * kTeams, kBlocks) gemv(__grid_constant__ Arguments const p) {
  unsigned char* const shared = ptx::dynamic_shared();
  ptx::release_next();
  auto* const activations = reinterpret_cast<__half*>(shared + sum_bytes<kGroups, kSlices, kTeams, kTurns>());
  auto* const peak = reinterpret_cast<std::uint32_t*>(activations) - kMaxTokens;
  Weights<T, kGroups> weights(p, peak, activations);
  teams::Loop<kGroups, kSlices, kTeams, kTurns, decltype(weights)>(weights, shared, column_tiles(p.columns),
                                                                   (p.rows + kTileRows - 1) / kTileRows)
      .run();
}

}  // namespace gb10::sparse24
