// The first launch of moe_grouped, and the last.
#pragma once

#include <cstdint>

#include "gb10/moe.cuh"
#include "gb10/ptx.cuh"
#include "moe_grouped.h"
#include "operands.cuh"

namespace gb10::moe_grouped {

inline constexpr int kGroupThreads = 1024;
inline constexpr int kAtOnce = 8;  // ids that a thread asks for together

// What the launches know of a call.
struct Plan {
  Workspace at;
  int pairs;
  int shared_intermediate;  // 0: no shared expert
  int tile;                 // tokens of a tile, at most
  bool by_warpgroups;       // multiplied by multiply_by_warpgroups
};

template <typename T>
__device__ __forceinline__ T* at(Arguments const& a, std::int64_t offset) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(a.workspace) + offset);
}

// A tile: `count` pairs of an expert from place `first` of the list on; of the shared expert (-1): tokens.
struct alignas(16) Tile {
  int expert, first, count, unused;
};

__host__ __device__ constexpr int group_bytes(int experts, int threads) { return 8 * threads + (4 * experts + 15) / 16 * 16; }

// body(pair, local expert) for every pair that has one; the threads of a block share them.
template <typename Body>
__device__ __forceinline__ void for_pairs(Arguments const& a, int pairs, Body&& body) {
  int const thread = threadIdx.x, threads = blockDim.x;
#pragma unroll 1
  for (int base = thread; base < pairs; base += kAtOnce * threads) {
    moe::RawId ids[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) ids[i] = moe::raw_id(a, min(base + i * threads, pairs - 1));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      int const pair = base + i * threads, expert = pair < pairs ? moe::local_expert(a, ids[i]) : -1;
      if (expert >= 0) body(pair, expert);
    }
  }
}

// Block 0 groups, the others bring x into the order of the operands. Shared memory: uint64 sums[threads], int counts[experts].
template <typename T>
__global__ void __launch_bounds__(kGroupThreads) group(__grid_constant__ Arguments const a, __grid_constant__ Plan const p) {
  int const thread = threadIdx.x, threads = blockDim.x;
  ptx::wait_for_previous();
  ptx::release_next();
  if (blockIdx.x > 0) {
    std::int64_t const pieces = static_cast<std::int64_t>(a.tokens) * a.w13.k / 8;
    uint4* const to = at<uint4>(a, p.at.parts);
    uint4 const* const from = static_cast<uint4 const*>(a.x);
    std::int64_t const first = static_cast<std::int64_t>(blockIdx.x - 1) * threads + thread;
    std::int64_t const step = static_cast<std::int64_t>(gridDim.x - 1) * threads;
    if (kIsBFloat16<T> && p.by_warpgroups) {
      for (std::int64_t i = first; i < pieces / 4; i += step) {
        std::int64_t const window = i / 2 * (kWindow / 8);
        int const half = static_cast<int>(i % 2);
        uint4 four[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = from[window + 2 * j + half];
        in_windows(four);
#pragma unroll
        for (int j = 0; j < 4; ++j) to[window + 4 * half + j] = four[j];
      }
    } else {
      for (std::int64_t i = first; i < pieces; i += step) to[i] = in_order<T>(from[i]);
    }
    return;
  }
  std::uint64_t* const sums = reinterpret_cast<std::uint64_t*>(ptx::dynamic_shared());
  int* const counts = reinterpret_cast<int*>(sums + threads);
  for (int e = thread; e < a.experts; e += threads) counts[e] = 0;
  __syncthreads();
  for_pairs(a, p.pairs, [&](int, int expert) { atomicAdd(counts + expert, 1); });
  __syncthreads();
  // Pairs and tiles before each thread's experts: pairs in the lower half of a number, tiles in the upper.
  int const share = (a.experts + threads - 1) / threads, begin = min(thread * share, a.experts),
            end = min(begin + share, a.experts);
  // Tiles of an expert are of one size, but for the last one: all at most p.tile, or for warpgroups as equal as may be.
  auto const size_in = [&p](int count) {
    if (!p.by_warpgroups || count <= p.tile) return p.tile;
    int const pieces = (count + p.tile - 1) / p.tile;
    return ((count + pieces - 1) / pieces + 15) / 16 * 16;
  };
  auto const size_of = [&p](int count) {
    return static_cast<std::uint64_t>((count + p.tile - 1) / p.tile) << 32 | static_cast<std::uint32_t>(count);
  };
  std::uint64_t own = 0;
  for (int e = begin; e < end; ++e) own += size_of(counts[e]);
  sums[thread] = own;
  __syncthreads();
  for (int distance = 1; distance < threads; distance *= 2) {
    std::uint64_t const before = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  std::uint64_t done = sums[thread] - own;
  Tile* const tiles = at<Tile>(a, p.at.tiles);
  for (int e = begin; e < end; ++e) {
    int const count = counts[e], first = static_cast<int>(done & 0xFFFFFFFFu), size = size_in(count);
    Tile* tile = tiles + (done >> 32);
    for (int i = 0; i < count; i += size) *tile++ = {e, first + i, min(count - i, size), 0};
    done += size_of(count);
    counts[e] = first;  // the next free place
  }
  int const routed = static_cast<int>(sums[threads - 1] >> 32);
  int const size = size_in(a.tokens), shared = p.shared_intermediate > 0 ? (a.tokens + size - 1) / size : 0;
  for (int i = thread; i < shared; i += threads) {
    tiles[routed + i] = {-1, i * size, min(a.tokens - i * size, size), 0};
  }
  if (thread == 0) tiles[p.at.tile_limit] = {0, routed + shared, 0, 0};
  __syncthreads();
  int* const list = at<int>(a, p.at.pairs);
  for_pairs(a, p.pairs, [&](int pair, int expert) { list[atomicAdd(counts + expert, 1)] = pair; });
}

// A block has a token; its threads take eight numbers at a time. Shared memory: float factors[topk + 1], int rows[topk + 1], of
// which the first `count` are used: the routed experts' in their order, then the shared one's.
__host__ __device__ constexpr int combine_bytes(int topk) { return (8 * (topk + 1) + 8 + 15) / 16 * 16; }

template <typename T>
__global__ void combine(__grid_constant__ Arguments const a, __grid_constant__ Plan const p) {
  ptx::wait_for_previous();
  ptx::release_next();
  int const token = blockIdx.x, pieces = a.w2.rows / 8;
  float* const factors = reinterpret_cast<float*>(ptx::dynamic_shared());
  int* const rows = reinterpret_cast<int*>(factors + a.topk + 1);
  int* const count = rows + a.topk + 1;
  if (threadIdx.x < 32) {
    int const lane = threadIdx.x, pair = token * a.topk + lane;
    bool const routed = lane < a.topk && moe::local_expert(a, moe::raw_id(a, lane < a.topk ? pair : token * a.topk)) >= 0;
    unsigned const all = __ballot_sync(~0u, routed);
    if (routed) {
      int const place = __popc(all & ((1u << lane) - 1));
      rows[place] = pair;
      factors[place] = a.router_weight_on_input ? 1.0f : a.weights[pair];
    }
    if (lane == 0) {
      int used = __popc(all);
      if (p.shared_intermediate > 0) {
        float multiplier = 1.0f;
        if (a.shared_multiplier) {
          multiplier = a.multiplier_as_x ? static_cast<float>(static_cast<T const*>(a.shared_multiplier)[token])
                                         : static_cast<float const*>(a.shared_multiplier)[token];
        }
        rows[used] = p.pairs + token;
        factors[used++] = multiplier;
      }
      *count = used;
    }
  }
  __syncthreads();
  uint4 const* const parts = at<uint4 const>(a, p.at.parts);
  int const used = *count;
  for (int piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
    float sums[8] = {};
#pragma unroll 4
    for (int i = 0; i < used; ++i) {
      uint4 const v = parts[static_cast<std::int64_t>(rows[i]) * pieces + piece];
      float const factor = factors[i];
      std::uint32_t const words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 const two = floats_of<T>(words[j]);
        sums[2 * j] += factor * two.x;
        sums[2 * j + 1] += factor * two.y;
      }
    }
    uint4 const sum{word_of_floats<T>(sums[0], sums[1]), word_of_floats<T>(sums[2], sums[3]), word_of_floats<T>(sums[4], sums[5]),
                    word_of_floats<T>(sums[6], sums[7])};
    static_cast<uint4*>(a.out)[static_cast<std::int64_t>(token) * pieces + piece] = sum;
  }
}

}  // namespace gb10::moe_grouped
