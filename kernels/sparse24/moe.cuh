// A mixture-of-experts layer for 1..16 tokens after routing, in two launches, from weights kept 2 of 4 (lossy, opt-in).
//
//   gate_up:  act[token, slot, i] = activation(gate, up),  gate = w13[e, gate row i] . x[token],  up = w13[e, up row i] . x[token]
//   down:     out[token, r] = sum over slots of weight[token, slot] * (w2[e, r] . act[token, slot])
//
// with e = ids[token, slot], looked up in expert_map if there is one. An id that is -1, out of range, or mapped to no local expert
// contributes nothing. With router_weight_on_input the weight multiplies gate and up instead, and the sum has none.
//
// Shapes: x [tokens, hidden] and out, bf16 or f16; w13 [experts][2 * intermediate, hidden] (gate rows first, or up rows first), w2
// [experts][hidden, intermediate], packed as in sparse24.cuh. hidden and intermediate are multiples of 16. act is float32.
//
// Both launches first make a list of entries in shared memory: the experts that tokens chose, in the order of their first (token,
// slot) pair, each with the pair of every token (an expert that a token chose twice has two entries). The columns of the matrix
// instruction are the tokens, whether they chose the expert or not; one pass over its weights serves them all.
//  - gate_up: a tile is 16 channels of an entry: 16 gate rows and the 16 up rows of the same channels; a unit is 256 k of both.
//    Only the results of tokens that chose the entry's expert are written.
//  - down: a tile is 16 rows of the output; a unit is 256 k of an entry. A block has act of all pairs in shared memory, times the
//    router weight and w2's global scale, and a row of zeros for the tokens that did not choose an expert. So all entries add up in
//    the same sums.
// The loop over tiles and units is teams.cuh's: the order of sums is fixed by the ids and the shape.
//
// Bound by memory: 13 / 32 * (3 * hidden * intermediate) bytes an expert. Needs sm_80. From 9.0 on gate_up lets down begin only
// when the kernels before it have ended; down reads ids and weights while gate_up runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/moe.cuh"
#include "gb10/ptx.cuh"
#include "gb10/teams.cuh"
#include "moe.h"
#include "tile.cuh"

namespace gb10::sparse24 {

inline constexpr std::uint16_t kNoPair = 0xFFFF;

// In shared memory, for up to `pairs` entries.
struct Entries {
  std::uint16_t* members;  // [entries][kMaxTokens]: the pair of a token, or kNoPair
  int* expert;             // [entries]
  int* key;                // [pairs]: expert and how often its token has it in slots before; -1: none
  std::uint32_t* heads;    // [16]: bit of each pair that begins an entry
};
__host__ __device__ constexpr int entry_bytes(int pairs) { return (2 * kMaxTokens + 8) * pairs + 4 * 16; }

__device__ __forceinline__ Entries entries_at(unsigned char* shared, int pairs) {
  Entries e;
  e.members = reinterpret_cast<std::uint16_t*>(shared);
  e.expert = reinterpret_cast<int*>(shared + 2 * kMaxTokens * pairs);
  e.key = e.expert + pairs;
  e.heads = reinterpret_cast<std::uint32_t*>(e.key + pairs);
  return e;
}

// Makes the list and gives its length; called by all threads of the block.
__device__ __forceinline__ int make_entries(MoeArguments const& p, Entries const& e) {
  int const pairs = p.tokens * p.topk, thread = threadIdx.x, threads = blockDim.x;
  for (int pair = thread; pair < pairs; pair += threads) e.key[pair] = moe::local_expert(p, moe::raw_id(p, pair));
  auto* const members = reinterpret_cast<std::uint32_t*>(e.members);
  for (int i = thread; i < pairs * kMaxTokens / 2; i += threads) members[i] = kNoPair * 0x10001u;
  __syncthreads();
  // An expert's number is below 2^16 and a slot's below 2^5. Pairs past the last one take part in the votes.
  int key[2], head[2];  // of this thread's pairs; a block has 256 threads and there are up to 512 pairs
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int const pair = thread + i * threads;
    key[i] = pair < pairs ? e.key[pair] : -1;
    if (key[i] < 0) continue;
    int before = 0;
    for (int other = pair / p.topk * p.topk; other < pair; ++other) before += e.key[other] == key[i];
    key[i] = key[i] << 5 | before;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (thread + i * threads < pairs) e.key[thread + i * threads] = key[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int const pair = thread + i * threads;
    head[i] = pair;
    if (key[i] >= 0) {
#pragma unroll 4
      for (int other = pair - 1; other >= 0; --other) head[i] = e.key[other] == key[i] ? other : head[i];
    }
    std::uint32_t const heads = __ballot_sync(0xFFFFFFFFu, key[i] >= 0 && head[i] == pair);
    if (thread % 32 == 0 && pair < 512) e.heads[pair / 32] = heads;
  }
  __syncthreads();
  int count = 0;
#pragma unroll
  for (int word = 0; word < 16; ++word) count += __popc(e.heads[word]);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (key[i] < 0) continue;
    int const pair = thread + i * threads;
    int entry = __popc(e.heads[head[i] / 32] & ((1u << head[i] % 32) - 1));
    for (int word = 0; word < head[i] / 32; ++word) entry += __popc(e.heads[word]);
    e.members[entry * kMaxTokens + pair / p.topk] = static_cast<std::uint16_t>(pair);
    if (head[i] == pair) e.expert[entry] = key[i] >> 5;
  }
  __syncthreads();
  return count;
}

inline constexpr int kMoeWarps = 8;
inline constexpr int kMoeThreads = 32 * kMoeWarps;

// ---- gate_up. Shared memory: sums, peak[16], entries, x of all tokens.
template <int kGroups, int kSlices>
__host__ __device__ constexpr int gate_up_sum_bytes() {
  return teams::sum_bytes<2 * kGroups, kSlices, kMoeWarps / kSlices, (kSlices < 8)>();
}
template <int kGroups, int kSlices>
constexpr std::size_t gate_up_bytes(int tokens, int topk, int hidden) {
  return gate_up_sum_bytes<kGroups, kSlices>() + 4 * kMaxTokens + (entry_bytes(tokens * topk) + 15) / 16 * 16 +
         static_cast<std::size_t>(2) * tokens * row_stride(hidden);
}

template <typename T, int kGroups>
class GateUp {
 public:
  static constexpr int kBatchUnits = 1;
  struct Batch {
    Tile gate, up;
  };

  __device__ __forceinline__ GateUp(MoeArguments const& p, Entries const& entries, std::uint32_t* peak, __half* x)
      : p_(p),
        entries_(entries),
        pointers_(p.w13, threadIdx.x % 32),
        peak_(peak),
        x_(x),
        column_tiles_(column_tiles(p.hidden)),
        channel_tiles_(p.intermediate / kTileRows) {
    int const g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) operand_[j] = x + min(8 * j + g, p.tokens - 1) * row_stride(p.hidden) + 8 * t;
  }

  __device__ __forceinline__ void load(Batch& batch, int tile, int unit, int end) const {
    if (unit >= end) return;
    int const entry = tile / channel_tiles_, channel_tile = tile - entry * channel_tiles_;
    std::uint32_t const first = static_cast<std::uint32_t>(entries_.expert[entry]) * 2 * channel_tiles_ + channel_tile;
    std::uint32_t const gate = first + (p_.up_first ? channel_tiles_ : 0), up = first + (p_.up_first ? 0 : channel_tiles_);
    pointers_.load(batch.gate, gate * column_tiles_ + unit);
    pointers_.load(batch.up, up * column_tiles_ + unit);
  }

  __device__ __forceinline__ void multiply(float (&sum)[2 * kGroups][4], Batch const& batch, int unit, int end) const {
    if (unit >= end) return;
    __half const* x[kGroups];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) x[j] = operand_[j] + unit * kXTile;
    sparse24::multiply<kGroups, 0>(sum, batch.gate, x);
    sparse24::multiply<kGroups, kGroups>(sum, batch.up, x);
  }

  __device__ __forceinline__ void activations_ready() {
    auto const* const x = static_cast<T const*>(p_.x);
    stage<T>(x_, peak_, p_.tokens, p_.hidden,
             [&](int row) { return Source<T>{x + static_cast<std::size_t>(row) * p_.hidden, 1.0f, row}; });
  }

  __device__ __forceinline__ void read_rows(int) const {}

  __device__ __forceinline__ void store(int tile, float const (&sum)[2 * kGroups][4]) const {
    int const entry = tile / channel_tiles_, channel_tile = tile - entry * channel_tiles_;
    int const g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float const* const globals = p_.w13_globals + entries_.expert[entry] * p_.global_columns;
    float const gate_scale = w4a16::kUnscale * __ldg(globals), up_scale = w4a16::kUnscale * __ldg(globals + p_.global_columns - 1);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        int const token = 8 * j + 2 * t + v;
        int const pair = entries_.members[entry * kMaxTokens + token];
        if (pair == kNoPair) continue;
        float factor = from_f16_range(peak_[token]);
        if (p_.router_weight_on_input) factor *= ptx::load_relaxed(p_.weights + pair);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float const gate = sum[j][2 * i + v] * (factor * gate_scale), up = sum[kGroups + j][2 * i + v] * (factor * up_scale);
          p_.act[static_cast<std::size_t>(pair) * p_.intermediate + channel_tile * kTileRows + g + 8 * i] =
              moe::activate<true>(p_, gate, up);
        }
      }
    }
  }

 private:
  MoeArguments const& p_;
  Entries const& entries_;
  TilePointers pointers_;
  std::uint32_t* peak_;
  __half* x_;
  __half const* operand_[kGroups];
  int column_tiles_, channel_tiles_;
};

template <typename T, int kGroups, int kSlices>
// With two groups x alone leaves room for one block an SM.
__global__ void __launch_bounds__(kMoeThreads, kGroups == 1 ? 2 : 1) gate_up(__grid_constant__ MoeArguments const p) {
  unsigned char* const shared = ptx::dynamic_shared();
  int const pairs = p.tokens * p.topk;
  auto* const peak = reinterpret_cast<std::uint32_t*>(shared + gate_up_sum_bytes<kGroups, kSlices>());
  auto* const list = reinterpret_cast<unsigned char*>(peak + kMaxTokens);
  auto* const x = reinterpret_cast<__half*>(list + (entry_bytes(pairs) + 15) / 16 * 16);
  if (threadIdx.x < kMaxTokens) peak[threadIdx.x] = 0;
  ptx::wait_for_previous();
  ptx::release_next();
  Entries const entries = entries_at(list, pairs);
  int const count = make_entries(p, entries);
  GateUp<T, kGroups> weights(p, entries, peak, x);
  teams::Loop<2 * kGroups, kSlices, kMoeWarps / kSlices, (kSlices < 8), decltype(weights)>(weights, shared, column_tiles(p.hidden),
                                                                                           count * (p.intermediate / kTileRows))
      .run();
}

// ---- down. Shared memory: sums, peak[16], entries, act of all pairs and a row of zeros.
template <int kGroups>
__host__ __device__ constexpr int down_sum_bytes() {
  return teams::sum_bytes<kGroups, kMoeWarps, 1, false>();
}
template <int kGroups>
constexpr std::size_t down_bytes(int tokens, int topk, int intermediate) {
  return down_sum_bytes<kGroups>() + 4 * kMaxTokens + (entry_bytes(tokens * topk) + 15) / 16 * 16 +
         static_cast<std::size_t>(2) * (tokens * topk + 1) * row_stride(intermediate);
}

template <typename T, int kGroups>
class Down {
 public:
  static constexpr int kBatchUnits = 2;
  struct Batch {
    Tile tiles[kBatchUnits];
  };

  __device__ __forceinline__ Down(MoeArguments const& p, Entries const& entries, std::uint32_t* peak, __half* act)
      : p_(p),
        entries_(entries),
        pointers_(p.w2, threadIdx.x % 32),
        peak_(peak),
        act_(act),
        column_tiles_(column_tiles(p.intermediate)),
        row_tiles_(p.hidden / kTileRows) {}

  __device__ __forceinline__ void load(Batch& batch, int tile, int unit, int end) const {
#pragma unroll
    for (int u = 0; u < kBatchUnits; ++u) {
      if (unit + u >= end) break;
      int const entry = (unit + u) / column_tiles_, column_tile = unit + u - entry * column_tiles_;
      std::uint32_t const row_tile = static_cast<std::uint32_t>(entries_.expert[entry]) * row_tiles_ + tile;
      pointers_.load(batch.tiles[u], row_tile * column_tiles_ + column_tile);
    }
  }

  __device__ __forceinline__ void multiply(float (&sum)[kGroups][4], Batch const& batch, int unit, int end) const {
    int const g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, pairs = p_.tokens * p_.topk, stride = row_stride(p_.intermediate);
#pragma unroll
    for (int u = 0; u < kBatchUnits; ++u) {
      if (unit + u >= end) break;
      int const entry = (unit + u) / column_tiles_, column_tile = unit + u - entry * column_tiles_;
      __half const* x[kGroups];
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        int const pair = min(static_cast<int>(entries_.members[entry * kMaxTokens + 8 * j + g]), pairs);
        x[j] = act_ + pair * stride + column_tile * kXTile + 8 * t;
      }
      sparse24::multiply<kGroups>(sum, batch.tiles[u], x);
    }
  }

  __device__ __forceinline__ void activations_ready() {
    ptx::wait_for_previous();
    int const pairs = p_.tokens * p_.topk;
    stage<float>(act_, peak_, pairs + 1, p_.intermediate, [&](int row) {
      int const expert = row < pairs ? entries_.key[row] : -1;
      if (expert < 0) return Source<float>{nullptr, 0.0f, 0};
      float factor = __ldg(p_.w2_globals + (expert >> 5));
      if (!p_.router_weight_on_input) factor *= ptx::load_relaxed(p_.weights + row);
      return Source<float>{p_.act + static_cast<std::size_t>(row) * p_.intermediate, factor, row / p_.topk};
    });
  }

  __device__ __forceinline__ void read_rows(int) const {}

  __device__ __forceinline__ void store(int tile, float const (&sum)[kGroups][4]) const {
    int const g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        int const token = 8 * j + 2 * t + v;
        if (token >= p_.tokens) continue;
        float const factor = w4a16::kUnscale * from_f16_range(peak_[token]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          static_cast<T*>(p_.out)[static_cast<std::size_t>(token) * p_.hidden + tile * kTileRows + g + 8 * i] =
              static_cast<T>(sum[j][2 * i + v] * factor);
        }
      }
    }
  }

 private:
  MoeArguments const& p_;
  Entries const& entries_;
  TilePointers pointers_;
  std::uint32_t* peak_;
  __half* act_;
  int column_tiles_, row_tiles_;
};

template <typename T, int kGroups>
__global__ void __launch_bounds__(kMoeThreads, 2) down(__grid_constant__ MoeArguments const p) {
  unsigned char* const shared = ptx::dynamic_shared();
  int const pairs = p.tokens * p.topk;
  ptx::release_next();
  auto* const peak = reinterpret_cast<std::uint32_t*>(shared + down_sum_bytes<kGroups>());
  auto* const list = reinterpret_cast<unsigned char*>(peak + kMaxTokens);
  auto* const act = reinterpret_cast<__half*>(list + (entry_bytes(pairs) + 15) / 16 * 16);
  if (threadIdx.x < kMaxTokens) peak[threadIdx.x] = 0;
  Entries const entries = entries_at(list, pairs);
  int const count = make_entries(p, entries);
  Down<T, kGroups> weights(p, entries, peak, act);
  teams::Loop<kGroups, kMoeWarps, 1, false, decltype(weights)>(weights, shared, count * column_tiles(p.intermediate),
                                                               p.hidden / kTileRows)
      .run();
}

}  // namespace gb10::sparse24
