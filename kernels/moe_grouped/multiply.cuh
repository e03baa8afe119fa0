// The two launches of moe_grouped that multiply, for every target: a block has 256 rows of a weight and a tile of at most kTile tokens.
//
// Each of its 4 warps has 64 rows, as 4 operands of 16 rows, and all tokens of the tile, as groups of 8. In a step of 128 k a thread
// (g = lane / 4, t = lane % 4) has for each of its 8 rows the 32 codes of two block scales, k 32 t .. 32 t + 31. Codes, block scales
// and activations come through a ring in shared memory. Where k ends in the middle of a step the rest is zeros.
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
inline constexpr int kStepK = 128;
inline constexpr int kStages = 3;       // places of the ring, at most
inline constexpr int kFewerStages = 2;  // where a block cannot have so much shared memory

// One place of the ring. A row of codes is 64 bytes, of scales 8. The 16-byte pieces of x are exchanged so that 8 threads that read
// together (2 tokens, 4 t) meet different banks.
template <int kTile>
struct alignas(16) Stage {
  unsigned char codes[kTileRows * kStepK / 2];
  unsigned char scales[kTileRows * kStepK / 16];
  unsigned char x[kTile * kStepK * 2];
};
__device__ __forceinline__ int x_place(int token, int piece) {
  return token * kStepK * 2 + (piece ^ (piece >> 3 << 1) ^ (token & 1)) * 16;
}

// What a block knows of its tokens.
template <int kTile>
struct Tokens {
  int source[kTile];     // the row of the input
  int target[kTile];     // the row of the result
  float factors[kTile];  // multiply gate and up
};

// Shared memory: Tokens; the ring, whose place the sums take after the last step (float [tokens][kSumStride]).
inline constexpr int kSumStride = kTileRows + 4;
template <int kTile>
__host__ __device__ constexpr int multiply_bytes(int stages) {
  int const ring = stages * static_cast<int>(sizeof(Stage<kTile>)), sums = kTile * kSumStride * 4;
  return static_cast<int>(sizeof(Tokens<kTile>)) + (ring > sums ? ring : sums);
}

__host__ __device__ constexpr int rows_of_block(bool down) { return down ? kTileRows : kTileRows / 2; }  // of the result

// The weight's rows of a block, in runs of 32 (hidden and intermediate are multiples of 64, so a run is there as a whole or not at
// all). Run `run` of gate_up: gate of 32 channels where it is even, up of the same where it is odd.
struct Rows {
  int base;     // row of the block's row 0
  int scale;    // from a row of a run to the next one
  int two;      // from a run to the next but one
  int odd;      // from an even run to the odd one after it
  int runs;     // that are there
  bool no_odd;  // of these the odd ones are not

  __device__ __forceinline__ bool there(int run) const { return run < runs && !(no_odd && (run & 1)); }
  __device__ __forceinline__ int of(int row) const {  // of the block's row, in a run that is there
    return base + row % 32 * scale + (row >> 6) * two + ((row >> 5) & 1) * odd;
  }
};

template <bool kDown>
__device__ __forceinline__ Rows rows_of(Arguments const& a, int rows, int first) {
  if constexpr (kDown) return {first, 1, 64, 32, (rows - first) / 32, false};
  int const channels = a.gated ? rows / 2 : rows, runs = (channels - first) / 32 * 2;
  if (a.interleaved) return {2 * first, 2, 64, 1, runs, false};
  if (a.up_first) return {channels + first, 1, 32, -channels, runs, false};
  return {first, 1, 32, channels, runs, !a.gated};
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

template <typename T, int kTile, int kGroups, bool kDown, bool kSwizzled>
__device__ __forceinline__ void multiply_tile(Arguments const& a, Task<T> const& task, unsigned char* shared, int stages) {
  int const thread = threadIdx.x, lane = thread % 32, g = lane >> 2, t = lane & 3;
  int const warp = __shfl_sync(~0u, thread / 32, 0);
  Tokens<kTile> const& tokens = *reinterpret_cast<Tokens<kTile> const*>(shared);
  shared += sizeof(Tokens<kTile>);
  Stage<kTile>* const ring = reinterpret_cast<Stage<kTile>*>(shared);
  int const row_bytes = task.k / 2, scale_columns = task.k / 16, steps = (task.k + kStepK - 1) / kStepK;
  bool const whole = task.k % kStepK == 0;  // no step ends in its middle, and scales can be copied 8 at a time

  // What this thread copies of a step: 16 bytes of codes of a row of each run, the scales of two rows, and pieces of x.
  Rows const rows = rows_of<kDown>(a, task.rows, task.first);
  int const code_piece = thread & 3, x_piece = thread % 16;
  std::uint8_t const* const codes_from =
      task.codes + static_cast<std::int64_t>(rows.base + thread / 4 * rows.scale) * row_bytes + code_piece * 16;
  std::uint32_t scale_row[2];
  bool scale_valid[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int const row = thread + kThreads * i;
    scale_valid[i] = rows.there(row / 32);
    scale_row[i] = static_cast<std::uint32_t>(w4a16::scale_offset<kSwizzled>(scale_valid[i] ? rows.of(row) : 0, 0, scale_columns));
  }
  std::uint32_t x_from[kGroups];  // in pieces of 8 numbers
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    int const token = min(thread / 16 + 8 * i, task.count - 1);
    x_from[i] = static_cast<std::uint32_t>(tokens.source[token]) * (task.k / 8) + x_piece;
  }
  // Whether this thread's pieces are there in the last step too.
  bool const codes_last = whole || code_piece < 2, x_last = whole || x_piece < 8;
  auto const copy = [&](int step, Stage<kTile>& stage) {
    bool const inner = step + 1 < steps, codes_there = inner || codes_last, x_there = inner || x_last;
    unsigned char* const codes_to = stage.codes + thread / 4 * (kStepK / 2) + code_piece * 16;
    std::uint8_t const* const from = codes_from + step * (kStepK / 2);
#pragma unroll
    for (int run = 0; run < 8; ++run) {
      std::int64_t const offset = static_cast<std::int64_t>((run >> 1) * rows.two + (run & 1) * rows.odd) * row_bytes;
      ptx::copy16_of_line(codes_to + run * 32 * (kStepK / 2), from + offset, codes_there && rows.there(run));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Four columns are together in both orders; the next four are 4 bytes (swizzled: 512) further.
      constexpr int kNext = kSwizzled ? 512 : 4;
      unsigned char* const to = stage.scales + (thread + kThreads * i) * (kStepK / 16);
      std::uint8_t const* const scales_from = task.scales + scale_row[i] + step * 2 * kNext;
      if (!kSwizzled && whole) {
        ptx::copy8(to, scales_from, scale_valid[i]);
      } else {
        ptx::copy4(to, scales_from, scale_valid[i]);
        ptx::copy4(to + 4, scales_from + kNext, scale_valid[i] && (whole || inner));
      }
    }
    uint4 const* const x = reinterpret_cast<uint4 const*>(task.x) + step * (kStepK / 8);
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      int const token = thread / 16 + 8 * i;
      ptx::copy16(stage.x + x_place(token, x_piece), x + x_from[i], x_there && token < task.count);
    }
  };

  float c[4][kGroups][4] = {};
#pragma unroll 1
  for (int i = 0; i < stages - 1; ++i) {
    if (i < steps) copy(i, ring[i]);
    ptx::end_copies();
  }
  int place = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (stages == kStages) ptx::wait_for_copies<kStages - 2>();
    else ptx::wait_for_copies<kFewerStages - 2>();
    __syncthreads();  // all see the step's copies, and nobody reads the place that the next copies go to
    int const before = place == 0 ? stages - 1 : place - 1;
    if (step + stages - 1 < steps) copy(step + stages - 1, ring[before]);
    ptx::end_copies();

    Stage<kTile> const& stage = ring[place];
    place = place + 1 == stages ? 0 : place + 1;
    uint4 codes[4][2];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int const row = warp * kWarpRows + m * 16 + i * 8 + g;
        codes[m][i] = *reinterpret_cast<uint4 const*>(stage.codes + row * (kStepK / 2) + t * 16);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t scale[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          int const row = warp * kWarpRows + m * 16 + i * 8 + g;
          scale[m][i] = scale_of<T>(stage.scales[row * (kStepK / 16) + t * 2 + half]);
        }
      }
#pragma unroll
      for (int word = 2 * half; word < 2 * half + 2; ++word) {
        std::uint32_t w[4][2][4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint4 const& four = codes[m][i];
            operands8<T>(word == 0 ? four.x : word == 1 ? four.y : word == 2 ? four.z : four.w, w[m][i]);
#pragma unroll
            for (int j = 0; j < 4; ++j) w[m][i][j] = mul2<T>(w[m][i][j], scale[m][i]);
          }
        }
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
          uint4 const b = *reinterpret_cast<uint4 const*>(stage.x + x_place(n * 8 + g, 4 * t + word));
#pragma unroll
          for (int m = 0; m < 4; ++m) mma_m16n8k16<T>(c[m][n], w[m][0][0], w[m][1][0], w[m][0][1], w[m][1][1], b.x, b.y);
#pragma unroll
          for (int m = 0; m < 4; ++m) mma_m16n8k16<T>(c[m][n], w[m][0][2], w[m][1][2], w[m][0][3], w[m][1][3], b.z, b.w);
        }
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
    *reinterpret_cast<uint4*>(task.out + static_cast<std::int64_t>(tokens.target[token]) * task.out_rows + task.first + row) =
        result;
  }
}

// Block b: tile b / row_tiles, rows from b % row_tiles on; `stages` is kStages or kFewerStages.
template <typename T, int kTile, bool kDown, bool kSwizzled>
__global__ void __launch_bounds__(kThreads, kTile == kSmallTile ? 3 : 2)
    multiply(__grid_constant__ Arguments const a, __grid_constant__ Plan const p, int const row_tiles, int const stages) {
  ptx::wait_for_previous();
  ptx::release_next();
  unsigned char* const shared = ptx::dynamic_shared();
  Tokens<kTile>& tokens = *reinterpret_cast<Tokens<kTile>*>(shared);
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
  if (threadIdx.x < kTile) {
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
  auto const run = [&]<int kGroups>() { multiply_tile<T, kTile, kGroups, kDown, kSwizzled>(a, task, shared, stages); };
  int const groups = (tile.count + 7) / 8;
  if (groups == 1) return run.template operator()<1>();
  if (groups == 2) return run.template operator()<2>();
  if constexpr (kTile > kSmallTile) {
    if (groups <= 4) run.template operator()<4>();
    else if (groups <= 6) run.template operator()<6>();
    else run.template operator()<8>();
  }
}

}  // namespace gb10::moe_grouped
