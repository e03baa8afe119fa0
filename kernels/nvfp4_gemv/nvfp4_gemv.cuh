// W4A16 GEMV: y[token, n] = sum over k of x[token, k] * w[n, k] (+ bias[n]) for 1 to 16 tokens, w in NVFP4.
//
//   x             [tokens, K] bf16 or f16; K a multiple of 64, at most kMaxK
//   weight        [N, K / 2] uint8: two E2M1 codes a byte, the even k in the low nibble
//   scales        float8_e4m3fn, finite and not negative: linear [N, K / 16], or the same padded to 128 rows and 4 columns and
//                 swizzled in tiles of 128 x 4
//   global_scale  one float; w[n, k] = e2m1 * scales[n, k / 16] * global_scale
//   bias          [N] as x, or null
//   out           [tokens, N] as x
//
// Products are exact, sums are FP32 in an order fixed by the shape and the number of SMs: two runs give the same bits.
//
// A team is `slices` warps that share tiles of 16 rows: each warp takes every slices-th tile of 256 k (w4a16.cuh), their sums
// meet in shared memory and are added in the order of the slices. A block is one or more teams and goes through tiles of rows
// in steps of all teams of the grid, so the grid reads one window of consecutive rows at a time. Each warp keeps kDepth tiles
// (2.3 KB each) in flight in a ring in shared memory. Activations lie in shared memory once a block, as f16 (w4a16::staged).
//
// With few tokens (plan.h) a warp decodes its first tile before the activations are there, and each further one while the one before
// it is multiplied: behind another kernel the weights arrive first, and what then takes the time is decoding them.
//
// Overlap with the kernel before (sm_90 and newer): weights and scales are read before wait_for_previous(), all else and every
// write after it. So weights and scales must not be written by a kernel that may still run. A next kernel launched the same
// way begins while this one runs, and what it may do then is read its weights. It writes (our x too, if it likes) only after
// its own wait, which returns when this grid has ended and its writes can be seen. Since every block here waits, the end of a
// grid also implies the end of all grids before it: a chain of such kernels is ordered link by link.
//
// Needs sm_80 or newer. Shared memory: 6.9 KB a warp, about 2.25 K bytes a token, and the sums of teams (plan.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/w4a16.cuh"
#include "plan.h"

namespace gb10::nvfp4_gemv {

static_assert(sizeof(w4a16::Place) == kTileBytes);

__host__ __device__ constexpr int x_stride(int k) { return w4a16::token_stride(k_tiles(k) * w4a16::kTileK); }

// A warp's place in its sequence of tiles: all its k of one tile of rows, then the next tile of rows.
struct Place {
  int row_tile;
  int k_tile;
};

// Where a lane copies from in a tile of rows: offsets of its rows, for codes and for scales. Rows past N read the last row: such
// rows are not stored. 32 bits are enough: the operator refuses larger weights.
struct Rows {
  std::uint32_t codes[4];
  std::uint32_t scales[2];
};

template <bool kSwizzled>
__device__ __forceinline__ Rows rows_at(Problem const& problem, int row_tile, int lane) {
  Rows rows;
  int const first = row_tile * w4a16::kTileRows;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rows.codes[i] = static_cast<std::uint32_t>(min(first + lane / 8 + 4 * i, problem.rows - 1)) * (problem.k / 2);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int const row = min(first + lane / 4 + 8 * i, problem.rows - 1);
    rows.scales[i] = static_cast<std::uint32_t>(w4a16::scale_offset<kSwizzled>(row, 0, problem.k / 16));
  }
  return rows;
}

// Starts the copies of a tile. k past K read the last k: they meet zeros in x.
template <bool kSwizzled>
__device__ __forceinline__ void fetch(std::uint32_t place, Problem const& problem, Rows const& rows, int k_tile, int lane) {
  std::uint32_t const code = min(k_tile * (w4a16::kTileK / 2) + lane % 8 * 16, problem.k / 2 - 16);
  std::uint32_t const scale = min(k_tile * 4 + lane % 4, problem.k / w4a16::kThreadK - 1) * (kSwizzled ? 512 : 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    ptx::copy16(place + w4a16::code_target(lane) + i * 512, problem.weight + (rows.codes[i] + code));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    ptx::copy4(place + offsetof(w4a16::Place, scales) + lane * 8 + i * 4, problem.scales + (rows.scales[i] + scale));
  }
}

// x to shared memory as the matrix instruction wants it (w4a16::staged), zeros from K to the end of the last tile. A warp
// copies the k of its slice, and teams share the tokens; so one warp alone finds the power of two of a token in a slice.
// inverse[token]: what the sums of this slice are multiplied with.
//
// kTokens tokens of kTiles tiles a warp are held in registers at a time, so that their loads are in flight together; a slice of
// more tiles than kTiles reads x twice.
template <typename T, int kTokens, int kTiles>
__device__ __forceinline__ void copy_pieces(__half* shared, float* inverse, Problem const& problem, int slice, int slices, int team,
                                            int teams, int lane) {
  int const tiles = k_tiles(problem.k), stride = x_stride(problem.k), step = slices * kTiles;
  __half* const to = shared + lane / 8 * w4a16::chunk_stride() + lane % 8 * 8;
  T const* const from = static_cast<T const*>(problem.x) + lane * 8;
  uint4 v[kTokens][kTiles];
  auto const load = [&](int token, int tile) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        int const at = (tile + j * slices) * w4a16::kTileK;
        v[i][j] = uint4{};
        if (token + i * teams < problem.tokens && at + lane * 8 < problem.k) {
          v[i][j] = *reinterpret_cast<uint4 const*>(from + (token + i * teams) * problem.k + at);
        }
      }
    }
  };
  for (int token = team; token < problem.tokens; token += kTokens * teams) {
    std::uint32_t peak[kTokens] = {};
    for (int tile = slice; tile < tiles; tile += step) {
      load(token, tile);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) peak[i] = max(peak[i], w4a16::magnitude<T>(v[i][j]));
      }
    }
    w4a16::Factor factor[kTokens];
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      factor[i] = w4a16::factor_for<T>(__reduce_max_sync(0xFFFFFFFFu, peak[i]));
      if (lane == 0 && token + i * teams < problem.tokens) inverse[token + i * teams] = factor[i].inverse;
    }
    for (int tile = slice; tile < tiles; tile += step) {
      if (slice + step < tiles) load(token, tile);  // else they are still there
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          if (token + i * teams < problem.tokens && tile + j * slices < tiles) {
            *reinterpret_cast<uint4*>(to + (token + i * teams) * stride + (tile + j * slices) * (4 * w4a16::chunk_stride())) =
                w4a16::staged<T>(v[i][j], factor[i].scale);
          }
        }
      }
    }
  }
}

// The same with as many in registers as there is place for: with decoded weights beside them, four vectors, or two
// where the assembler would spill.
template <typename T, bool kBesideOperands>
__device__ __forceinline__ void copy_x(__half* shared, float* inverse, Problem const& problem, int slice, int slices, int team,
                                       int teams, int lane) {
  int const tiles = k_tiles(problem.k);
  if constexpr (kBesideOperands) {
    copy_pieces<T, 1, kIsBFloat16<T> && !w4a16::kNaturalOrder ? 4 : 2>(shared, inverse, problem, slice, slices, team, teams, lane);
  } else if (problem.tokens > 2 * teams && tiles <= 2 * slices) {
    copy_pieces<T, 8, 2>(shared, inverse, problem, slice, slices, team, teams, lane);
  } else if (problem.tokens > teams && tiles <= 4 * slices) {
    copy_pieces<T, 2, 4>(shared, inverse, problem, slice, slices, team, teams, lane);
  } else {
    copy_pieces<T, 1, 8>(shared, inverse, problem, slice, slices, team, teams, lane);
  }
}

template <typename T, int kGroups>
__device__ __forceinline__ void store(Problem const& problem, float const (&c)[kGroups][4], float unscale, int row_tile, int g,
                                      int t) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int const row = row_tile * w4a16::kTileRows + g + 8 * i;
    if (row >= problem.rows) continue;
    float bias = 0.0f;
    if (problem.bias) bias = static_cast<float>(static_cast<T const*>(problem.bias)[row]);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        int const token = 8 * group + 2 * t + j;
        if (token < problem.tokens) {
          static_cast<T*>(problem.out)[static_cast<std::size_t>(token) * problem.rows + row] =
              static_cast<T>(fmaf(c[group][2 * i + j], unscale, bias));
        }
      }
    }
  }
}

// Grid: any number of blocks. Block: (32 * slices, teams). kGroups: 1 for up to 8 tokens, 2 for up to 16. kAhead, for few tokens: a
// warp decodes its first tile before it waits for the activations.
template <typename T, int kGroups, bool kSwizzled, bool kAhead>
__global__ void __launch_bounds__(32 * kBlockWarps, kBlocksPerSm) gemv(Problem const problem) {
  auto* const rings = reinterpret_cast<w4a16::Place*>(ptx::dynamic_shared());
  int const lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int const slice = threadIdx.x / 32, slices = blockDim.x / 32;
  int const team = threadIdx.y, teams = blockDim.y;
  int const tiles = k_tiles(problem.k), last_row_tile = row_tiles(problem.rows);
  int const row_step = gridDim.x * teams;

  Place now{static_cast<int>(blockIdx.x) * teams + team, slice};
  Place ahead = now;
  Rows rows = rows_at<kSwizzled>(problem, ahead.row_tile, lane);
  // This warp's ring: the place that is read next, and where it is for the copies.
  w4a16::Place* const ring = rings + (team * slices + slice) * kDepth;
  std::uint32_t const ring_address = ptx::shared_address(ring);
  auto const prefetch = [&](int place) {
    if (ahead.row_tile < last_row_tile) {
      fetch<kSwizzled>(ring_address + place * kTileBytes, problem, rows, ahead.k_tile, lane);
    }
    ptx::end_copies();
    ahead.k_tile += slices;
    if (ahead.k_tile >= tiles) {
      ahead.k_tile = slice;
      ahead.row_tile += row_step;
      rows = rows_at<kSwizzled>(problem, ahead.row_tile, lane);
    }
  };
#pragma unroll 1
  for (int d = 0; d < kDepth; ++d) prefetch(d);
  ptx::release_next();

  __half* const x = reinterpret_cast<__half*>(rings + teams * slices * kDepth);
  int const stride = x_stride(problem.k);
  float* const inverses = reinterpret_cast<float*>(x + problem.tokens * stride) + slice * kMaxTokens;
  // Where this thread's operands lie, and what its sums are multiplied with.
  __half const* operand[kGroups];
  float inverse[kGroups][2], unscale;
  auto const take_x = [&] {
    ptx::wait_for_previous();
    unscale = w4a16::kUnscale * *problem.global_scale;
    copy_x<T, kAhead>(x, inverses, problem, slice, slices, team, teams, lane);
    if (teams > 1) {
      __syncthreads();
    } else {
      __syncwarp();  // with one team every warp reads only what it copied
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      operand[group] = x + min(8 * group + g, problem.tokens - 1) * stride + t * w4a16::chunk_stride();
#pragma unroll
      for (int j = 0; j < 2; ++j) inverse[group][j] = inverses[min(8 * group + 2 * t + j, problem.tokens - 1)];
    }
  };
  if constexpr (!kAhead) take_x();

  float4* const sums = reinterpret_cast<float4*>(inverses + (slices - slice) * kMaxTokens) + team * slices * kGroups * 32;
  int const set_stride = teams * slices * kGroups * 32;
  int turn = 0;   // the slice that adds up next, and the set of partial sums in use
  int place = 0;  // of the ring
  float c[kGroups][4] = {};
  w4a16::Tile tile;
  auto const take_tile = [&] {
    ptx::wait_for_copies<kDepth - 1>();
    __syncwarp();
    w4a16::read(tile, ring[place], lane);
    __syncwarp();
    prefetch(place);
    place = place + 1 == kDepth ? 0 : place + 1;
  };
  w4a16::Operands operands;  // of the tile that is multiplied next
  if constexpr (kAhead) {
    if (now.row_tile < last_row_tile) {
      take_tile();
      w4a16::decode(operands, tile);
    }
    take_x();
  }
  // Not unrolled: in a chain of kernels the way of the code from memory counts.
#pragma unroll 1
  while (now.row_tile < last_row_tile) {
    __half const* at[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) at[group] = operand[group] + now.k_tile * (4 * w4a16::chunk_stride());
    now.k_tile += slices;
    bool const last_of_rows = now.k_tile >= tiles;
    if constexpr (!kAhead) {
      take_tile();
      w4a16::multiply<kGroups>(c, tile, at);
    } else if (last_of_rows && now.row_tile + row_step >= last_row_tile) {
      w4a16::multiply<kGroups, false>(c, operands, tile, at);
    } else {
      take_tile();
      w4a16::multiply<kGroups, true>(c, operands, tile, at);
    }
    if (!last_of_rows) continue;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int j = 0; j < 4; ++j) c[group][j] *= inverse[group][j % 2];
    }
    if (slices == 1) {
      store<T, kGroups>(problem, c, unscale, now.row_tile, g, t);
    } else {
      float4* const mine = sums + turn * set_stride;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        mine[(slice * kGroups + group) * 32 + lane] = {c[group][0], c[group][1], c[group][2], c[group][3]};
      }
      int const barrier = 1 + team * slices + turn;
      if (turn != slice) {
        ptx::barrier_arrive(barrier, 32 * slices);
      } else {
        ptx::barrier_wait(barrier, 32 * slices);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          float4 sum = mine[group * 32 + lane];
#pragma unroll
          for (int other = 1; other < kBlockWarps; ++other) {
            float4 const part = other < slices ? mine[(other * kGroups + group) * 32 + lane] : float4{};
            sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
          }
          c[group][0] = sum.x, c[group][1] = sum.y, c[group][2] = sum.z, c[group][3] = sum.w;
        }
        store<T, kGroups>(problem, c, unscale, now.row_tile, g, t);
      }
      turn = turn + 1 == problem.sets ? 0 : turn + 1;
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      c[group][0] = c[group][1] = c[group][2] = c[group][3] = 0.0f;
    }
    now.k_tile = slice;
    now.row_tile += row_step;
  }
}

}  // namespace gb10::nvfp4_gemv
