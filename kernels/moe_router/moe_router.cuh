// The kernel of moe_router.h.
#pragma once

#include <cstdint>

#include "gb10/mma.cuh"
#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "moe_router.h"

namespace gb10::moe_router {

inline constexpr int kFewWarps = 8, kManyWarps = 16;  // of a block: up to 8 tokens; up to 16
inline constexpr int kTileRows = 8;                   // of the gate, for a block, at most: columns of the matrix instruction
inline constexpr int kTokenRows = 16;                 // rows of the matrix instruction
inline constexpr int kPieceK = 32;         // k of a piece: a thread has 8 next to each other, for two matrix instructions
inline constexpr int kHeld = 64;           // pieces of the gate that a block holds
inline constexpr int kMaxVectors = 8;      // of 8 numbers of x that a thread holds
inline constexpr int kWarpKeys = 128;      // keys that a warp chooses from: 4 a lane
inline constexpr int kPatience = 1 << 24;  // looks for a key, of half a microsecond or more each

struct Plan {
  int tile_rows;     // rows of the gate for a block
  int tiles;         // blocks that compute logits; one more for each token chooses
  int warps_shift;   // log2 of the warps that share the norm of a token
  int vectors_each;  // of the vectors of all warps, those that a block writes
  float inverse_columns;
};

// Bytes from token to token in shared memory: eight lanes of a load lie in different banks.
__host__ __device__ constexpr int token_bytes(int columns) { return 2 * columns + 64; }
// Shared memory: float partials[warps][16][8]; float squares[warps]; T norm_weight[columns]; T normed[tokens][token_bytes].
// Where tokens are chosen: uint32 heads[8 * 32 + 4]; uint32 chosen[32]; float sums[8].
__host__ __device__ constexpr int partial_bytes(int warps) { return warps * kTokenRows * kTileRows * 4; }
__host__ __device__ constexpr int shared_bytes(int warps, int tokens, int columns) {
  return partial_bytes(warps) + warps * 4 + 2 * columns + tokens * token_bytes(columns);
}

// A logit and its expert as a number that is larger where the logit is, or the logit is the same and the expert is lower.
template <typename T>
__device__ __forceinline__ std::uint32_t key_of(float logit, int expert) {
  std::uint32_t bits = word_of_floats<T>(logit, 0.0f) & 0xFFFF;
  if (bits == 0x8000) bits = 0;  // -0 is 0
  bits = bits & 0x8000 ? ~bits & 0xFFFF : bits | 0x8000;
  return bits << 16 | (0xFFFFu - expert);
}
__device__ __forceinline__ int expert_of(std::uint32_t key) { return 0xFFFF - static_cast<int>(key & 0xFFFF); }
template <typename T>
__device__ __forceinline__ float logit_of(std::uint32_t key) {
  std::uint32_t const bits = key >> 16;
  return floats_of<T>(bits & 0x8000 ? bits & 0x7FFF : ~bits & 0xFFFF).x;
}

__device__ __forceinline__ void order(std::uint32_t& larger, std::uint32_t& smaller) {
  std::uint32_t const most = max(larger, smaller);
  smaller = min(larger, smaller);
  larger = most;
}

template <typename V>
__device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

// Chooses the experts of one token: each warp the topk of its 128 keys, then all together the topk of those.
template <typename T>
__device__ __forceinline__ void choose(Arguments const& a, int token) {
  auto* const heads = reinterpret_cast<std::uint32_t*>(ptx::dynamic_shared());
  std::uint32_t* const chosen = heads + kMaxExperts / kWarpKeys * 32 + 4;
  float* const sums = reinterpret_cast<float*>(chosen + 32);
  int const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int const warps = (a.experts + kWarpKeys - 1) / kWarpKeys, threads = 32 * warps;
  ptx::wait_for_previous();
  if (warp >= warps) return;

  int const own = a.experts - 4 * thread;
  auto* const place = reinterpret_cast<uint4*>(a.keys + token * key_stride(a.experts)) + thread;
  uint4 keys{0, 0, 0, 0};
  if (own > 0) {
#pragma unroll 1
    for (int looks = 0;; ++looks) {
      keys = ptx::load_relaxed(place);
      if (keys.x && (keys.y || own < 2) && (keys.z || own < 3) && (keys.w || own < 4)) break;
      if (looks == kPatience) ptx::stop();  // nobody computes them: a workspace of two streams, or not of zeros
    }
    *place = {0, 0, 0, 0};
  }
  uint4 left = keys;
  order(left.x, left.y);
  order(left.z, left.w);
  order(left.x, left.z);
  order(left.y, left.w);
  order(left.y, left.z);
  std::uint32_t key = 0;  // of slot `lane`
#pragma unroll 1
  for (int slot = 0; slot < a.topk; ++slot) {
    std::uint32_t const top = __reduce_max_sync(~0u, left.x);
    if (lane == slot) key = top;
    if (left.x == top) left = {left.y, left.z, left.w, 0};
  }

  if (warps > 1) {
    // The place of each candidate is the number of larger ones.
    int const candidates = warps * a.topk;
    if (lane < a.topk) heads[warp * a.topk + lane] = key;
    if (thread < 4) heads[candidates + thread] = 0;
    ptx::barrier_wait(1, threads);
    if (thread < candidates) {
      std::uint32_t const mine = heads[thread];
      int larger = 0;
#pragma unroll 2
      for (int i = 0; i < candidates; i += 4) {
        std::uint32_t const* const other = heads + i;
        larger += (other[0] > mine) + (other[1] > mine) + (other[2] > mine) + (other[3] > mine);
      }
      if (larger < a.topk) chosen[larger] = mine;
    }
    if (a.renormalise && warp != 0) {
      ptx::barrier_arrive(2, threads);
      return;
    }
    ptx::barrier_wait(2, threads);
    key = lane < a.topk ? chosen[lane] : 0;
  }

  float const largest = logit_of<T>(__shfl_sync(~0u, key, 0));
  float const share = lane < a.topk ? expf(logit_of<T>(key) - largest) : 0.0f;
  float total = warp_sum(share);
  if (!a.renormalise) {
    float sum = 0.0f;
    if (own > 0) sum += expf(logit_of<T>(keys.x) - largest);
    if (own > 1) sum += expf(logit_of<T>(keys.y) - largest);
    if (own > 2) sum += expf(logit_of<T>(keys.z) - largest);
    if (own > 3) sum += expf(logit_of<T>(keys.w) - largest);
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = sum;
    ptx::barrier_wait(3, threads);
    total = 0.0f;
#pragma unroll 1
    for (int i = 0; i < warps; ++i) total += sums[i];
  }
  if (warp == 0 && lane < a.topk) {
    a.ids[token * a.topk + lane] = expert_of(key);
    a.weights[token * a.topk + lane] = __fdividef(share, total);
  }
}

// kVectors: of 8 numbers of x, for a thread.
template <typename T, int kWarps, int kVectors>
__global__ void __launch_bounds__(32 * kWarps, 1) route(__grid_constant__ Arguments const a, __grid_constant__ Plan const plan) {
  constexpr bool kUpperOnly = kWarps == kFewWarps;  // no tokens in the lower rows of the matrix instruction
  constexpr int kOwn = kHeld / kWarps;              // pieces of a warp
  // With one token the next kernel comes when the choosing block has ended: moe_decode's blocks, all there from the beginning,
  // cost it 1.3 us a layer on an H200. With more tokens their early start is worth more than that.
  bool const late = a.tokens == 1;
  if (!late) ptx::release_next();
  if (blockIdx.x >= plan.tiles) {
    choose<T>(a, blockIdx.x - plan.tiles);
    return;
  }
  unsigned char* const shared = ptx::dynamic_shared();
  float* const partials = reinterpret_cast<float*>(shared);
  float* const squares = partials + partial_bytes(kWarps) / 4;
  unsigned char* const norm = reinterpret_cast<unsigned char*>(squares + kWarps);
  unsigned char* const normed = norm + 2 * a.columns;
  int const thread = threadIdx.x, lane = thread % 32, g = lane / 4, t = lane % 4;
  int const warp = __shfl_sync(~0u, thread / 32, 0);
  int const pieces = a.columns / kPieceK, vectors = a.columns / 8, bytes = token_bytes(a.columns);

  // The gate's rows, ahead of everything: a warp has pairs of pieces, kWarps pairs apart. A lane without a row has another one's.
  int const rows = a.experts + (a.shared_gate != nullptr), first_row = blockIdx.x * plan.tile_rows;
  int const row = min(first_row + min(g, plan.tile_rows - 1), rows - 1);
  auto const* const gate = (row < a.experts ? static_cast<T const*>(a.gate) + static_cast<std::int64_t>(row) * a.columns
                                            : static_cast<T const*>(a.shared_gate)) +
                           8 * t;
  auto const piece_of = [&](int i) { return (i / 2 * kWarps + warp) * 2 + i % 2; };
  uint4 held[kOwn];
  auto const load = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      int const piece = begin + piece_of(i);
      held[i] = {0, 0, 0, 0};
      if (piece < pieces) ptx::load_ahead(held[i], gate + piece * kPieceK);
    }
  };
  load(0);

  // This thread's part of the norm: kVectors vectors of one token, 32 apart.
  int const warps = 1 << plan.warps_shift, token = warp >> plan.warps_shift;  // of a token
  int const first = (warp & (warps - 1)) * (32 * kVectors) + lane;
  unsigned valid = 0;  // bits: vectors that exist
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (token < a.tokens && first + i * 32 < vectors) valid |= 1u << i;
  }
  // Vectors that this block writes for all.
  unsigned const not_mine = warp * kVectors - blockIdx.x * plan.vectors_each;
  auto const mine = [&](int i) { return not_mine + i < static_cast<unsigned>(plan.vectors_each); };
  bool const has_norm = a.norm_weight != nullptr;
#pragma unroll 1
  for (int i = thread; has_norm && i < vectors; i += 32 * kWarps) {
    ptx::copy16(norm + i * 16, static_cast<unsigned char const*>(a.norm_weight) + i * 16);
  }
  ptx::end_copies();
  ptx::wait_for_previous();
  if (late) ptx::release_next();

  int const first_vector = token * vectors + first;
  uint4 x[kVectors], residual[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    x[i] = residual[i] = {0, 0, 0, 0};
    if (valid >> i & 1) {
      x[i] = static_cast<uint4 const*>(a.x)[first_vector + i * 32];
      if (a.residual) residual[i] = static_cast<uint4 const*>(a.residual)[first_vector + i * 32];
    }
  }
  auto const place_of = [&](int i) { return reinterpret_cast<uint4*>(normed + token * bytes) + first + i * 32; };
  if (!has_norm) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (valid >> i & 1) *place_of(i) = x[i];
    }
  } else {
    float2 v[kVectors][4];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      std::uint32_t const left[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
      std::uint32_t const right[4] = {residual[i].x, residual[i].y, residual[i].z, residual[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 const p = floats_of<T>(left[j]), q = floats_of<T>(right[j]);
        v[i][j] = {p.x + q.x, p.y + q.y};
        sum = fmaf(v[i][j].x, v[i][j].x, sum);
        sum = fmaf(v[i][j].y, v[i][j].y, sum);
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) squares[warp] = sum;
    ptx::wait_for_copies<0>();
    __syncthreads();
    float total = squares[(token << plan.warps_shift) + (lane & (warps - 1))];
#pragma unroll 1
    for (int step = warps / 2; step; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    float const scale = rsqrtf(total * plan.inverse_columns + a.epsilon), plus = a.norm_plus_one ? 1.0f : 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!(valid >> i & 1)) continue;
      uint4 const weight = *(reinterpret_cast<uint4 const*>(norm) + first + i * 32);
      std::uint32_t const words[4] = {weight.x, weight.y, weight.z, weight.w};
      std::uint32_t out[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 const w = floats_of<T>(words[j]);
        out[j] = word_of_floats<T>(v[i][j].x * scale * (w.x + plus), v[i][j].y * scale * (w.y + plus));
      }
      uint4 const result{out[0], out[1], out[2], out[3]};
      *place_of(i) = result;
      if (mine(i)) {
        if (a.normed) static_cast<uint4*>(a.normed)[first_vector + i * 32] = result;
        if (a.residual_out) {
          static_cast<uint4*>(a.residual_out)[first_vector + i * 32] = {
              word_of_floats<T>(v[i][0].x, v[i][0].y), word_of_floats<T>(v[i][1].x, v[i][1].y),
              word_of_floats<T>(v[i][2].x, v[i][2].y), word_of_floats<T>(v[i][3].x, v[i][3].y)};
        }
      }
    }
  }
  __syncthreads();

  // Tokens are the rows of the product, the gate's rows its columns; rows beyond the last token are those of any. Four sums, so
  // that one need not wait for the other.
  float c[4][4] = {};
  unsigned char const* const upper = normed + min(g, a.tokens - 1) * bytes + t * 16;
  unsigned char const* const lower = normed + min(g + 8, a.tokens - 1) * bytes + t * 16;
#pragma unroll 1
  for (int begin = 0; begin < pieces; begin += kHeld) {
    if (begin != 0) load(begin);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      int const at = min(begin + piece_of(i), pieces - 1) * (2 * kPieceK);
      uint4 const u = *reinterpret_cast<uint4 const*>(upper + at);
      uint4 l{0, 0, 0, 0};
      if constexpr (!kUpperOnly) l = *reinterpret_cast<uint4 const*>(lower + at);
      mma_m16n8k16<T>(c[i % 2 * 2], u.x, l.x, u.y, l.y, held[i].x, held[i].y);
      mma_m16n8k16<T>(c[i % 2 * 2 + 1], u.z, l.z, u.w, l.w, held[i].z, held[i].w);
    }
  }
  auto const sum_of = [&](int i) { return (c[0][i] + c[1][i]) + (c[2][i] + c[3][i]); };
  float* const to = partials + (warp * kTokenRows + g) * kTileRows + 2 * t;
  if (g < a.tokens) *reinterpret_cast<float2*>(to) = {sum_of(0), sum_of(1)};
  if (!kUpperOnly && g + 8 < a.tokens) *reinterpret_cast<float2*>(to + 8 * kTileRows) = {sum_of(2), sum_of(3)};
  __syncthreads();

  int const column = thread % kTileRows, of_token = thread / kTileRows, result_row = first_row + column;
  if (of_token >= a.tokens || column >= plan.tile_rows || result_row >= rows) return;
  float logit = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) logit += partials[(w * kTokenRows + of_token) * kTileRows + column];
  if (result_row < a.experts) {
    ptx::store_relaxed(a.keys + of_token * key_stride(a.experts) + result_row, key_of<T>(logit, result_row));
  } else {
    a.shared_multiplier[of_token] = __fdividef(1.0f, 1.0f + expf(-logit));
  }
}

}  // namespace gb10::moe_router
