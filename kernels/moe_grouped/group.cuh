// The launches of moe_grouped before those that multiply, and the last.
#pragma once

#include <cstdint>

#include "gb10/moe.cuh"
#include "gb10/ptx.cuh"
#include "moe_grouped.h"
#include "operands.cuh"

namespace gb10::moe_grouped {

inline constexpr int kGroupThreads = 1024;
inline constexpr int kAtOnce = 8;  // ids that a thread asks for together
inline constexpr int kMaxChunks = 64;
inline constexpr int kPartsAtOnce = 6;  // that a thread of combine asks for together

// What the launches know of a call.
struct Plan {
  Workspace at;
  int pairs;
  int shared_intermediate;  // 0: no shared expert
  int tile;                 // tokens of a tile, at most
  bool by_warpgroups;       // multiplied by multiply_by_warpgroups
  int chunks;               // blocks that share the grouping; of one the launch `count` does it all
};

// Blocks that share the grouping: a pair or so a thread; their counts must fit where act will be.
constexpr int chunks_of(int pairs, int experts, int intermediate) {
  std::int64_t const room = std::int64_t{2} * pairs * intermediate / (4 * std::int64_t{experts});
  std::int64_t const wanted = pairs / kGroupThreads < kMaxChunks ? pairs / kGroupThreads : kMaxChunks;
  std::int64_t const chunks = wanted < room ? wanted : room;
  return chunks < 1 ? 1 : static_cast<int>(chunks);
}

template <typename T>
__device__ __forceinline__ T* at(Arguments const& a, std::int64_t offset) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(a.workspace) + offset);
}

// A tile: `count` pairs of an expert from place `first` of the list on; of the shared expert (-1): tokens.
// After the last one: {0, how many tiles, and how many items of gate_up and of down were taken by blocks that stay}.
struct alignas(16) Tile {
  int expert, first, count, unused;
};

// body(pair, local expert) for every pair of a chunk that has one; the threads of a block share them.
template <typename Body>
__device__ __forceinline__ void for_pairs(Arguments const& a, Plan const& p, int chunk, Body&& body) {
  int const thread = threadIdx.x, threads = blockDim.x, size = (p.pairs + p.chunks - 1) / p.chunks;
  int const pairs = min((chunk + 1) * size, p.pairs);
#pragma unroll 1
  for (int base = chunk * size + thread; base < pairs; base += kAtOnce * threads) {
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

// The share of a block of x, brought into the order of the operands.
template <typename T>
__device__ __forceinline__ void copy_x(Arguments const& a, Plan const& p, int block, int blocks) {
  std::int64_t const pieces = static_cast<std::int64_t>(a.tokens) * a.w13.k / 8;
  uint4* const to = at<uint4>(a, p.at.parts);
  uint4 const* const from = static_cast<uint4 const*>(a.x);
  std::int64_t const first = static_cast<std::int64_t>(block) * blockDim.x + threadIdx.x;
  std::int64_t const step = static_cast<std::int64_t>(blocks) * blockDim.x;
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
}

// What the threads of a block that groups share.
struct Grouping {
  int sums[kGroupThreads];
  int classes[kWideTile / 16 + 2];  // of tiles: by their tokens, in 16; the last one takes those of none
};
__host__ __device__ constexpr int group_bytes(int experts) {
  return (static_cast<int>(sizeof(Grouping)) + 4 * experts + 15) / 16 * 16;
}

// From how many pairs each expert has to the tiles, the largest first, which one block writes, and to where each expert's pairs
// begin in the list (`counts` before and after).
__device__ __forceinline__ void make_tiles(Arguments const& a, Plan const& p, int* counts, Grouping& grouping, bool writes) {
  int const thread = threadIdx.x, threads = blockDim.x;
  int const share = (a.experts + threads - 1) / threads, begin = min(thread * share, a.experts),
            end = min(begin + share, a.experts);
  // Tiles of an expert are of one size, but for the last one: all at most p.tile, or for warpgroups as equal as may be.
  auto const size_in = [&p](int count) {
    if (!p.by_warpgroups || count <= p.tile) return min(count, p.tile);
    int const pieces = (count + p.tile - 1) / p.tile;
    return ((count + pieces - 1) / pieces + 15) / 16 * 16;
  };
  auto const tiles_in = [&p](int count) { return (count + p.tile - 1) / p.tile; };
  auto const class_of = [&](int count) { return grouping.classes + (size_in(count) + 15) / 16; };
  int own = 0;
  for (int e = begin; e < end; ++e) own += counts[e];
  grouping.sums[thread] = own;
  for (int i = thread; i < kWideTile / 16 + 2; i += threads) grouping.classes[i] = 0;
  __syncthreads();
  for (int distance = 1; distance < threads; distance *= 2) {
    int const before = thread >= distance ? grouping.sums[thread - distance] : 0;
    __syncthreads();
    grouping.sums[thread] += before;
    __syncthreads();
  }
  int const all = p.shared_intermediate > 0 ? a.tokens : 0;
  if (writes) {
    for (int e = begin; e < end; ++e) atomicAdd(class_of(counts[e]), tiles_in(counts[e]));
    if (thread == 0) atomicAdd(class_of(all), tiles_in(all));
    __syncthreads();
    if (thread == 0) {
      int before = 0;
      for (int i = kWideTile / 16 + 1; i >= 0; --i) {
        int const here = grouping.classes[i];
        grouping.classes[i] = before;
        before += here;
      }
      at<Tile>(a, p.at.tiles)[p.at.tile_limit] = {0, before, 0, 0};
    }
    __syncthreads();
  }
  auto const write = [&](int expert, int first, int count) {
    int const size = size_in(count);
    Tile* tile = at<Tile>(a, p.at.tiles) + atomicAdd(class_of(count), tiles_in(count));
    for (int i = 0; i < count; i += size) *tile++ = {expert, first + i, min(count - i, size), 0};
  };
  if (writes && thread == 0) write(-1, 0, all);
  int done = grouping.sums[thread] - own;
  for (int e = begin; e < end; ++e) {
    int const count = counts[e];
    if (writes) write(e, done, count);
    counts[e] = done;
    done += count;
  }
  __syncthreads();
}

// How many pairs of each expert a chunk has, int [chunks][experts]: where act will be.
__device__ __forceinline__ int* chunk_counts(Arguments const& a, Plan const& p) { return at<int>(a, p.at.act); }

__device__ __forceinline__ void count_pairs(Arguments const& a, Plan const& p, int chunk, int* counts) {
  for (int e = threadIdx.x; e < a.experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for_pairs(a, p, chunk, [&](int, int expert) { atomicAdd(counts + expert, 1); });
  __syncthreads();
}

// A chunk's pairs into the list; counts: the next free place of each expert.
__device__ __forceinline__ void list_pairs(Arguments const& a, Plan const& p, int chunk, int* counts) {
  int* const list = at<int>(a, p.at.pairs);
  for_pairs(a, p, chunk, [&](int pair, int expert) { list[atomicAdd(counts + expert, 1)] = pair; });
}

// The first blocks count a chunk each, or the first one groups all; the others copy x. Shared memory, of `group` too: Grouping, int
// counts[experts].
template <typename T>
__global__ void __launch_bounds__(kGroupThreads) count(__grid_constant__ Arguments const a, __grid_constant__ Plan const p) {
  ptx::wait_for_previous();
  ptx::release_next();
  int const block = blockIdx.x;
  if (block >= p.chunks) return copy_x<T>(a, p, block - p.chunks, static_cast<int>(gridDim.x) - p.chunks);
  Grouping& grouping = *reinterpret_cast<Grouping*>(ptx::dynamic_shared());
  int* const counts = reinterpret_cast<int*>(&grouping + 1);
  count_pairs(a, p, block, counts);
  if (p.chunks == 1) {
    make_tiles(a, p, counts, grouping, true);
    list_pairs(a, p, 0, counts);
  } else {
    int* const to = chunk_counts(a, p) + block * a.experts;
    for (int e = threadIdx.x; e < a.experts; e += blockDim.x) to[e] = counts[e];
  }
}

// With several chunks: a block lists the pairs of one.
__global__ void __launch_bounds__(kGroupThreads) group(__grid_constant__ Arguments const a, __grid_constant__ Plan const p) {
  ptx::wait_for_previous();
  ptx::release_next();
  Grouping& grouping = *reinterpret_cast<Grouping*>(ptx::dynamic_shared());
  int* const counts = reinterpret_cast<int*>(&grouping + 1);
  int const block = blockIdx.x;
  int const* const of_chunks = chunk_counts(a, p);
  for (int e = threadIdx.x; e < a.experts; e += blockDim.x) {
    int sum = 0;
#pragma unroll 8
    for (int chunk = 0; chunk < p.chunks; ++chunk) sum += of_chunks[chunk * a.experts + e];
    counts[e] = sum;
  }
  __syncthreads();
  make_tiles(a, p, counts, grouping, block == 0);
  for (int e = threadIdx.x; e < a.experts; e += blockDim.x) {
    int before = 0;
#pragma unroll 8
    for (int chunk = 0; chunk < block; ++chunk) before += of_chunks[chunk * a.experts + e];
    counts[e] += before;
  }
  __syncthreads();
  list_pairs(a, p, block, counts);
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
    for (int base = 0; base < used; base += kPartsAtOnce) {
      uint4 v[kPartsAtOnce];
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        v[i] = base + i < used ? parts[static_cast<std::int64_t>(rows[base + i]) * pieces + piece] : uint4{};
      }
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        float const factor = base + i < used ? factors[base + i] : 0.0f;
        std::uint32_t const words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float2 const two = floats_of<T>(words[j]);
          sums[2 * j] += factor * two.x;
          sums[2 * j + 1] += factor * two.y;
        }
      }
    }
    uint4 const sum{word_of_floats<T>(sums[0], sums[1]), word_of_floats<T>(sums[2], sums[3]), word_of_floats<T>(sums[4], sums[5]),
                    word_of_floats<T>(sums[6], sums[7])};
    static_cast<uint4*>(a.out)[static_cast<std::int64_t>(token) * pieces + piece] = sum;
  }
}

}  // namespace gb10::moe_grouped
