// The lists that both launches of moe_decode make first, in shared memory: entries, and the tokens in them.
//
// The (token, slot) pairs are grouped by expert. An entry is an expert with some of its tokens, the columns of one matrix
// instruction: up to 8 in gate_up, DownPlan::columns_shift in down. An expert with more tokens has several entries, next to each
// other, so that all but the first find the weights in L2. The shared expert follows as further entries.
#pragma once

#include <cstdint>

#include "gb10/device.h"
#include "gb10/moe.cuh"
#include "gb10/ptx.cuh"
#include "gb10/w4a16.cuh"
#include "moe_decode.h"

namespace gb10::moe_decode {

inline constexpr int kColumns = 8;  // of the matrix instruction: tokens of an entry

__host__ __device__ constexpr int k_tiles(int k) { return divide_up(k, w4a16::kTileK); }
__host__ __device__ constexpr int x_stride(int k) { return w4a16::token_stride(k_tiles(k) * w4a16::kTileK); }

// Channels of one tile of gate_up.
__host__ __device__ constexpr int channels_of(bool gated) { return gated ? 8 : 16; }

// What both launches are cut by.
struct Sizes {
  int tokens, pairs, shared_width;
  int channel_tiles, shared_channel_tiles, k_tiles, shared_k_tiles;
  int values;  // of act
};

inline Sizes sizes_of(Arguments const& a) {
  Sizes s{};
  s.tokens = a.tokens;
  s.pairs = a.tokens * a.topk;
  s.shared_width = a.shared_w13.codes != nullptr ? a.shared_w2.k : 0;
  int const channels = channels_of(a.gated);
  s.channel_tiles = a.w2.k / channels;
  s.shared_channel_tiles = s.shared_width / channels;
  s.k_tiles = k_tiles(a.w2.k);
  s.shared_k_tiles = k_tiles(s.shared_width);
  s.values = s.pairs * a.w2.k + s.tokens * s.shared_width;
  return s;
}

// Up to 8 tokens that share an expert's weights. The shared expert is cut into entries of as many tiles as the routed ones have.
struct alignas(16) Entry {
  std::uint8_t const* codes;   // of its first row and k
  std::uint8_t const* scales;  // of its first row and k; gate_up, swizzled: of the matrix
  int tiles;                   // of channels (gate_up) or of k (down)
  int code_step, scale_step;   // from a row of a thread to its other row; scale_step is of no use when swizzled
  int columns;
  int act0;              // act of row 0 would begin here; the row (pair, or tokens * topk + token) times width goes on top
  int width;             // intermediate
  int first_row, apart;  // for swizzled scales: its first row, and from a row of a thread to its other row
  int left;              // down: k from its first k to the end of a row
  int row_bytes;         // of codes; of scales it is an eighth
  float globals[2];      // gate, up; of w2 twice the same
};

// An item is a column of an entry: a row of act, a token, and where the token lies in gate_up's shared memory, in 64 bytes.
__device__ __forceinline__ std::uint32_t make_item(int row, int token, int x_step) {
  return row << 20 | token << 16 | token * x_step;
}
__device__ __forceinline__ int row_of(std::uint32_t item) { return item >> 20; }
__device__ __forceinline__ int token_of(std::uint32_t item) { return item >> 16 & 15; }
__device__ __forceinline__ int place_of(std::uint32_t item) { return item & 0xFFFF; }

// Lists in shared memory, and how many bytes they take.
struct Lists {
  Entry* entries;
  std::uint32_t* items;   // [entries][8]
  std::uint32_t* table;   // [experts]: tokens that chose it, first entry << 16
  std::uint32_t* same;    // [pairs]: slots of the token with the pair's expert; bit 0 is slot 0
  std::int32_t* expert;   // [pairs]: -1 where it is none, or the token has it already
  std::uint32_t* heads;   // [16]: slots that are the first pair with their expert
  std::uint32_t* counts;  // [16]: entries of those
  float* weight;          // [pairs + tokens]: the router weight; after grouping: of all slots with the same expert
};

__host__ __device__ constexpr int entry_limit(int pairs, int tokens, int columns, int tiles, int shared_tiles) {
  return pairs + divide_up(tokens, columns) * divide_up(shared_tiles, tiles);
}
__host__ __device__ constexpr int lists_bytes(int limit, int pairs, int tokens, int experts) {
  int const bytes = limit * (static_cast<int>(sizeof(Entry)) + 4 * kColumns) + 4 * (experts + 3 * pairs + tokens + 2 * kMaxTokens);
  return (bytes + 15) / 16 * 16;
}

__device__ __forceinline__ Lists lists_at(void* shared, int limit, int pairs, int experts) {
  Lists l;
  l.entries = static_cast<Entry*>(shared);
  l.items = reinterpret_cast<std::uint32_t*>(l.entries + limit);
  l.table = l.items + limit * kColumns;
  l.same = l.table + experts;
  l.expert = reinterpret_cast<std::int32_t*>(l.same + pairs);
  l.heads = reinterpret_cast<std::uint32_t*>(l.expert + pairs);
  l.counts = l.heads + kMaxTokens;
  l.weight = reinterpret_cast<float*>(l.counts + kMaxTokens);
  return l;
}

// What the two launches differ in, for the lists.
struct Side {
  Matrix const& routed;
  Matrix const& shared;
  int tiles, shared_tiles;  // of an expert, of the shared expert
  int tile_rows;            // gate_up: from tile to tile; 0: tiles are of k
  int channels;             // of a tile, in act
  int apart;                // of the rows of a thread; 0: intermediate
  bool up_first;
  int x_step;  // see make_item
  int shift;   // log2 of the most columns of an entry
};

template <bool kSwizzled>
__device__ __forceinline__ void make_entry(Entry& e, Side const& side, Matrix const& m, int expert, int width, int first_tile,
                                           int tiles, int columns, int act_row0) {
  int const row_bytes = m.k / 2;
  int const up = side.apart ? side.apart : width, apart = side.up_first ? -up : up;
  int const first_row = (side.up_first ? up : 0) + first_tile * side.tile_rows;
  int const first_k = side.tile_rows ? 0 : first_tile * w4a16::kTileK;
  std::int64_t const codes = static_cast<std::int64_t>(expert) * m.rows * row_bytes;
  std::int64_t const first = static_cast<std::int64_t>(first_row) * row_bytes + first_k / 2;
  e.codes = m.codes + codes + first;
  e.scales = m.scales + expert * m.scale_bytes + (kSwizzled ? first_k / 64 * 512 : first / 8);
  e.tiles = tiles;
  e.code_step = apart * row_bytes;
  e.scale_step = apart * row_bytes >> 3;
  e.columns = columns;
  e.act0 = act_row0 + first_tile * side.channels;
  e.width = width;
  e.first_row = first_row;
  e.apart = apart;
  e.left = width - first_k;
  e.row_bytes = row_bytes;
  float const* const globals = m.globals + expert * m.global_columns;
  ptx::copy4(&e.globals[0], globals, true);
  ptx::copy4(&e.globals[1], globals + m.global_columns - 1, true);
}

__device__ __forceinline__ void clear_lists(Arguments const& a, Lists const& l, int limit, int thread, int threads) {
#pragma unroll 1
  for (int i = thread; i < a.experts; i += threads) l.table[i] = 0;
#pragma unroll 1
  for (int i = thread; i < limit * kColumns; i += threads) l.items[i] = 0;
}

// Groups the pairs by expert and gives the number of entries. The whole block together, after clear_lists and a barrier. The
// globals of the entries are copied without waiting. Its loops are not unrolled: code that runs once costs its way from memory.
template <bool kSwizzled, bool kWeights>
__device__ __forceinline__ int group_pairs(Arguments const& a, Side const& side, Lists const& l, int thread, int threads) {
  int const warp = thread / 32, warps = threads / 32, lane = thread % 32;
  int const columns = 1 << side.shift;
  std::uint32_t const below = (1u << lane) - 1;
  bool const slot = lane < a.topk;
#pragma unroll 1
  for (int token = warp; token < a.tokens; token += warps) {
    int const pair = token * a.topk + lane;
    moe::RawId raw{-1, 0};
    float weight = 0.0f;
    if (slot) {
      raw = moe::raw_id(a, pair);
      if (kWeights && !a.router_weight_on_input) weight = ptx::load_relaxed(a.weights + pair);
    }
    int const expert = moe::local_expert(a, raw);
    std::uint32_t const same = __match_any_sync(~0u, expert);
    bool const first = expert >= 0 && (same & below) == 0;
    if (slot) {
      l.expert[pair] = first ? expert : -1;
      l.same[pair] = same;
      if (kWeights) l.weight[pair] = weight;
    }
    if (first) atomicOr(&l.table[expert], 1u << token);
  }
  __syncthreads();
#pragma unroll 1
  for (int token = warp; token < a.tokens; token += warps) {
    int const pair = token * a.topk + lane;
    int const expert = slot ? l.expert[pair] : -1;
    std::uint32_t const tokens = expert >= 0 ? l.table[expert] : 0;
    bool const head = expert >= 0 && (tokens & ((1u << token) - 1)) == 0;
    std::uint32_t const heads = __ballot_sync(~0u, head);
    int const count = __reduce_add_sync(~0u, head ? (__popc(tokens) + columns - 1) >> side.shift : 0);
    if (lane == 0) {
      l.heads[token] = heads;
      l.counts[token] = count;
    }
    if (kWeights) {
      float sum = 0.0f;
      if (expert >= 0) {
        if (a.router_weight_on_input) sum = 1.0f;
        else
#pragma unroll 1
          for (std::uint32_t rest = l.same[pair]; rest; rest &= rest - 1) sum += l.weight[token * a.topk + __ffs(rest) - 1];
      }
      __syncwarp();
      if (expert >= 0) l.weight[pair] = sum;
    }
  }
  __syncthreads();
  std::uint32_t const own = lane < a.tokens ? l.counts[lane] : 0;
  int const routed = __reduce_add_sync(~0u, own);
#pragma unroll 1
  for (int token = warp; token < a.tokens; token += warps) {
    int u = __reduce_add_sync(~0u, lane < token ? own : 0u);
    bool const head = l.heads[token] >> lane & 1;
    int const expert = head ? l.expert[token * a.topk + lane] : 0;
    std::uint32_t const tokens = head ? l.table[expert] : 0;
    int const count = __popc(tokens), mine = (count + columns - 1) >> side.shift;
    // Sum of the entries of the lanes below.
#pragma unroll 1
    for (std::uint32_t rest = l.heads[token]; rest; rest &= rest - 1) {
      int const from = __ffs(rest) - 1, theirs = __shfl_sync(~0u, mine, from);
      if (from < lane) u += theirs;
    }
    if (head) {
      l.table[expert] = tokens | static_cast<std::uint32_t>(u) << 16;
#pragma unroll 1
      for (int i = 0; i < mine; ++i) {
        l.entries[u + i].width = expert;
        l.entries[u + i].columns = min(columns, count - i * columns);
      }
    }
  }
  __syncthreads();
  int const groups = (a.tokens + columns - 1) >> side.shift;
  int const entries = routed + (side.shared_tiles > 0 ? groups * divide_up(side.shared_tiles, side.tiles) : 0);
#pragma unroll 1
  for (int token = warp; token < a.tokens; token += warps) {
    int const pair = token * a.topk + lane;
    int const expert = slot ? l.expert[pair] : -1;
    if (expert >= 0) {
      std::uint32_t const entry = l.table[expert];
      int const rank = __popc(entry & 0xFFFF & ((1u << token) - 1));
      int const place = static_cast<int>((entry >> 16) + (rank >> side.shift)) * kColumns + (rank & (columns - 1));
      l.items[place] = make_item(pair, token, side.x_step);
    }
  }
#pragma unroll 1
  for (int u = thread; u < entries; u += threads) {
    bool const is_shared = u >= routed;
    int const part = is_shared ? (u - routed) / groups : 0, group = u - routed - part * groups;
    Entry& e = l.entries[u];
    int const expert = is_shared ? 0 : e.width;
    int const count = is_shared ? min(columns, a.tokens - group * columns) : e.columns;
    int const tiles = is_shared ? min(side.tiles, side.shared_tiles - part * side.tiles) : side.tiles;
    make_entry<kSwizzled>(e, side, is_shared ? side.shared : side.routed, expert, is_shared ? a.shared_w2.k : a.w2.k,
                          part * side.tiles, tiles, count, is_shared ? a.tokens * a.topk * (a.w2.k - a.shared_w2.k) : 0);
    if (is_shared) {
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        int const token = group * columns + i;
        l.items[u * kColumns + i] = make_item(a.tokens * a.topk + token, token, side.x_step);
      }
    }
  }
  __syncthreads();
  return entries;
}

}  // namespace gb10::moe_decode
