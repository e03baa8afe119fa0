// The two launches of moe_grouped that multiply: a block has 256 rows of a weight and a tile of at most 64 tokens.
//
// Each of its 4 warps has 64 rows, as 4 operands of 16 rows, and all tokens of the tile, as groups of 8. In a step of 64 k a thread
// (g = lane / 4, t = lane % 4) has for each of its 8 rows the 16 codes of one block scale, k 16 t .. 16 t + 15. Codes, block scales and
// activations come through a ring in shared memory, kStages - 1 steps ahead.
//
// In gate_up the first 32 rows of a warp are gate and the last 32 up, of the same 32 channels.
#pragma once

#include <cstdint>

#include "gb10/mma.cuh"
#include "gb10/moe.cuh"
#include "gb10/ptx.cuh"
#include "group.cuh"
#include "moe_grouped.h"
#include "operands.cuh"

namespace gb10::moe_grouped {

inline constexpr int kThreads = 128;
inline constexpr int kTileRows = 256;
inline constexpr int kWarpRows = 64;
inline constexpr int kStepK = 64;
inline constexpr int kStages = 4;

// One place of the ring. A row of codes is 32 bytes; the 16-byte pieces of x of odd tokens are exchanged in pairs, so that 8 threads
// that read together meet different banks.
struct alignas(16) Stage {
  unsigned char codes[kTileRows * kStepK / 2];
  std::uint32_t scales[kTileRows];
  unsigned char x[kTileTokens * kStepK * 2];
};

// What a block knows of its tokens.
struct Tokens {
  int source[kTileTokens];     // the row of the input
  int target[kTileTokens];     // the row of the result
  float factors[kTileTokens];  // multiply gate and up
};

// Shared memory: the ring, whose place the sums take after the last step (float [tokens][kSumStride]); Tokens.
inline constexpr int kSumStride = kTileRows + 4;
inline constexpr int kRingBytes = kStages * static_cast<int>(sizeof(Stage));
inline constexpr int kMultiplyBytes = kRingBytes + static_cast<int>(sizeof(Tokens));
static_assert(kRingBytes >= kTileTokens * kSumStride * 4);

__host__ __device__ constexpr int rows_of_block(bool down) { return down ? kTileRows : kTileRows / 2; }  // of the result

// The weight's row of a block's row, or -1. gate_up: row 0..31 of each 64 is gate, 32..63 up, of channels from `first` on.
template <bool kDown>
__device__ __forceinline__ int weight_row(Arguments const& a, int rows, int first, int row) {
  if constexpr (kDown) {
    return first + row < rows ? first + row : -1;
  } else {
    int const channel = first + row / kWarpRows * 32 + row % 32, channels = a.gated ? rows / 2 : rows;
    bool const up = row & 32;
    if (channel >= channels || (up && !a.gated)) return -1;
    if (a.interleaved) return 2 * channel + up;
    return up != a.up_first ? channels + channel : channel;
  }
}

// What a block multiplies.
template <typename T>
struct Task {
  std::uint8_t const* codes;
  std::uint8_t const* scales;
  float const* globals;
  T const* x;  // the row of token i begins at x + source[i] * k
  T* out;      // its result at out + target[i] * out_rows
  int rows, k, global_columns, out_rows;
  int first;  // row or channel of the result
  int count;  // tokens
};

__device__ __forceinline__ void read8(float (&v)[8], float const* from) {
  float4 const low = *reinterpret_cast<float4 const*>(from), high = *reinterpret_cast<float4 const*>(from + 4);
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

template <typename T, int kGroups, bool kDown, bool kSwizzled>
__device__ __forceinline__ void multiply_tile(Arguments const& a, Task<T> const& task, unsigned char* shared) {
  int const thread = threadIdx.x, lane = thread % 32, g = lane >> 2, t = lane & 3;
  int const warp = __shfl_sync(~0u, thread / 32, 0);
  Stage* const ring = reinterpret_cast<Stage*>(shared);
  Tokens const& tokens = *reinterpret_cast<Tokens const*>(shared + kRingBytes);
  int const row_bytes = task.k / 2, scale_columns = task.k / 16, steps = task.k / kStepK;

  // What this thread copies of a step: half a row of codes of each warp, the scales of two rows, and pieces of x.
  constexpr int kPieces = (kGroups * 64 + kThreads - 1) / kThreads;
  std::uint32_t code_offset[4];
  bool code_valid[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int const row = weight_row<kDown>(a, task.rows, task.first, thread / 2 + kWarpRows * i);
    code_valid[i] = row >= 0;
    code_offset[i] = static_cast<std::uint32_t>(max(row, 0)) * row_bytes + (thread & 1) * 16;
  }
  std::uint32_t scale_row[2];
  bool scale_valid[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int const row = weight_row<kDown>(a, task.rows, task.first, thread + kThreads * i);
    scale_valid[i] = row >= 0;
    scale_row[i] = static_cast<std::uint32_t>(w4a16::scale_offset<kSwizzled>(max(row, 0), 0, scale_columns));
  }
  T const* x_row[kPieces];
  bool x_valid[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    int const token = thread / 8 + 16 * i;
    x_valid[i] = token < task.count;
    x_row[i] = task.x + static_cast<std::int64_t>(tokens.source[min(token, task.count - 1)]) * task.k + thread % 8 * 8;
  }
  auto const copy = [&](int step) {
    Stage& stage = ring[step % kStages];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::copy16_of_line(stage.codes + (thread / 2 + kWarpRows * i) * 32 + (thread & 1) * 16,
                          task.codes + code_offset[i] + step * 32, code_valid[i]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Four columns are together in both orders; the next four are 4 bytes (swizzled: 512) further.
      ptx::copy4(stage.scales + thread + kThreads * i, task.scales + scale_row[i] + step * (kSwizzled ? 512 : 4), scale_valid[i]);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      int const token = thread / 8 + 16 * i;
      if (kGroups % 2 == 0 || token < kGroups * 8) {
        ptx::copy16(stage.x + token * 128 + ((thread % 8) ^ (token & 1)) * 16, x_row[i] + step * kStepK, x_valid[i]);
      }
    }
  };

  float c[4][kGroups][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < steps) copy(i);
    ptx::end_copies();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::wait_for_copies<kStages - 2>();
    __syncthreads();  // all see the step's copies, and nobody reads the place that the next copies go to
    if (step + kStages - 1 < steps) copy(step + kStages - 1);
    ptx::end_copies();

    Stage const& stage = ring[step % kStages];
    uint2 codes[4][2];
    std::uint32_t scale[4][2];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int const row = warp * kWarpRows + m * 16 + i * 8 + g;
        codes[m][i] = *reinterpret_cast<uint2 const*>(stage.codes + row * 32 + t * 8);
        scale[m][i] = scale_of<T>(reinterpret_cast<unsigned char const*>(stage.scales + row)[t]);
      }
    }
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      std::uint32_t w[4][2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          operands8<T>(word == 0 ? codes[m][i].x : codes[m][i].y, w[m][i]);
#pragma unroll
          for (int j = 0; j < 4; ++j) w[m][i][j] = mul2<T>(w[m][i][j], scale[m][i]);
        }
      }
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        uint4 const b = *reinterpret_cast<uint4 const*>(stage.x + (n * 8 + g) * 128 + ((2 * t + word) ^ (g & 1)) * 16);
#pragma unroll
        for (int m = 0; m < 4; ++m) mma_m16n8k16<T>(c[m][n], w[m][0][0], w[m][1][0], w[m][0][1], w[m][1][1], b.x, b.y);
#pragma unroll
        for (int m = 0; m < 4; ++m) mma_m16n8k16<T>(c[m][n], w[m][0][2], w[m][1][2], w[m][0][3], w[m][1][3], b.z, b.w);
      }
    }
  }
  ptx::wait_for_copies<0>();
  __syncthreads();

  // The sums by token in shared memory; then a thread takes eight rows of a token at a time.
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      float* const to = sums + (n * 8 + 2 * t) * kSumStride + warp * kWarpRows + m * 16 + g;
      to[0] = c[m][n][0];
      to[kSumStride] = c[m][n][1];
      to[8] = c[m][n][2];
      to[kSumStride + 8] = c[m][n][3];
    }
  }
  __syncthreads();
  constexpr int kPiecesOfToken = rows_of_block(kDown) / 8;
  float const global = kUnscale * task.globals[0], global_up = kUnscale * task.globals[task.global_columns - 1];
#pragma unroll 1
  for (int i = thread; i < task.count * kPiecesOfToken; i += kThreads) {
    int const token = i / kPiecesOfToken, row = i % kPiecesOfToken * 8;
    if (task.first + row >= task.out_rows) continue;
    float v[8];
    if constexpr (kDown) {
      read8(v, sums + token * kSumStride + row);
#pragma unroll
      for (float& value : v) value *= global;
    } else {
      float const* const from = sums + token * kSumStride + row / 32 * kWarpRows + row % 32;
      float const factor = tokens.factors[token];
      float gate[8], up[8];
      read8(gate, from);
      read8(up, from + 32);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        v[j] = moe::activate(a, gate[j] * global * factor, a.gated ? up[j] * global_up * factor : 1.0f);
      }
    }
    uint4 result{word_of_floats<T>(v[0], v[1]), word_of_floats<T>(v[2], v[3]), word_of_floats<T>(v[4], v[5]),
                 word_of_floats<T>(v[6], v[7])};
    if constexpr (!kDown) result = in_order<T>(result);
    *reinterpret_cast<uint4*>(task.out + static_cast<std::int64_t>(tokens.target[token]) * task.out_rows + task.first + row) = result;
  }
}

// Block b: tile b / row_tiles, rows from b % row_tiles on.
template <typename T, bool kDown, bool kSwizzled>
__global__ void __launch_bounds__(kThreads, 2)
    multiply(__grid_constant__ Arguments const a, __grid_constant__ Plan const p, int const row_tiles) {
  ptx::wait_for_previous();
  ptx::release_next();
  unsigned char* const shared = ptx::dynamic_shared();
  Tokens& tokens = *reinterpret_cast<Tokens*>(shared + kRingBytes);
  Tile const* const tiles = at<Tile const>(a, p.at.tiles);
  int const number = blockIdx.x / row_tiles;
  if (number >= tiles[p.at.tile_limit].first) return;
  Tile const tile = tiles[number];
  bool const shared_expert = tile.expert < 0;
  moe::Matrix const& matrix = shared_expert ? (kDown ? a.shared_w2 : a.shared_w13) : (kDown ? a.w2 : a.w13);
  int const e = max(tile.expert, 0);
  int const intermediate = shared_expert ? p.shared_intermediate : a.w2.k;
  Task<T> task{};
  task.out_rows = kDown ? a.w2.rows : intermediate;
  task.first = static_cast<int>(blockIdx.x) % row_tiles * rows_of_block(kDown);
  if (task.first >= task.out_rows) return;
  task.codes = matrix.codes + static_cast<std::int64_t>(e) * matrix.rows * (matrix.k / 2);
  task.scales = matrix.scales + e * matrix.scale_bytes;
  task.globals = matrix.globals + e * matrix.global_columns;
  task.global_columns = matrix.global_columns;
  task.rows = matrix.rows;
  task.k = matrix.k;
  task.count = tile.count;

  // act: rows by place in the list, the shared expert's by token, after all others. parts: rows by pair, then by token.
  std::int64_t const shared_act = shared_expert ? static_cast<std::int64_t>(p.pairs) * a.w2.k : 0;
  T* const act = at<T>(a, p.at.act) + shared_act;
  T* const parts = at<T>(a, p.at.parts) + (shared_expert ? static_cast<std::int64_t>(p.pairs) * a.w2.rows : 0);
  if (threadIdx.x < kTileTokens) {
    int const i = min(static_cast<int>(threadIdx.x), tile.count - 1), row = tile.first + i;
    int const pair = shared_expert ? row : at<int const>(a, p.at.pairs)[row];
    int const token = shared_expert ? row : pair / a.topk;
    tokens.source[threadIdx.x] = kDown ? row : token;
    tokens.target[threadIdx.x] = kDown ? pair : row;
    tokens.factors[threadIdx.x] = a.router_weight_on_input && !shared_expert ? a.weights[pair] : 1.0f;
  }
  __syncthreads();
  task.x = kDown ? act : at<T>(a, p.at.parts);
  task.out = kDown ? parts : act;
  auto const run = [&]<int kGroups>() {
    multiply_tile<T, kGroups, kDown, kSwizzled>(a, task, shared);
  };
  int const groups = (tile.count + 7) / 8;
  if (groups == 1) run.template operator()<1>();
  else if (groups == 2) run.template operator()<2>();
  else if (groups <= 4) run.template operator()<4>();
  else if (groups <= 6) run.template operator()<6>();
  else run.template operator()<8>();
}

}  // namespace gb10::moe_grouped
