// A mixture-of-experts layer for 1..16 tokens after routing, in two launches, straight from NVFP4 weights.
//
//   gate_up:  act[token, e, i] = activation(gate, up),  gate = w13[e, gate row i] . x[token],  up = w13[e, up row i] . x[token]
//   down:     out[token, r] = sum over e of weight[token, e] * (w2[e, r] . act[token, e])
//                             + multiplier[token] * (shared_w2[r] . shared_act[token])
//
// e runs over the local experts that the token chose: topk_ids, looked up in expert_map if there is one. An id that is -1, out
// of range, or mapped to no local expert contributes nothing. A token that chose an expert twice has the sum of both weights.
// With router_weight_on_input the weight multiplies gate and up instead (what stock vLLM does) and the sum has none.
//
// Shapes: x [tokens, hidden] and out, bf16 or f16; w13 [experts, 2 * intermediate, hidden / 2] (gate rows first, up rows first,
// or interleaved; [experts, intermediate, hidden / 2] for activations without gate), w2 [experts, hidden, intermediate / 2];
// hidden and intermediate are multiples of 64, at most kMaxWidth. Weight layout and tile: see w4a16.cuh.
//
// Numbers: x is multiplied in f16, a bf16 token times a power of two (w4a16.cuh). act lies in the workspace in f16 too, each
// group of 8 channels times the power of two that puts its largest magnitude into [2^14, 2^15); that power is one byte:
//   half act[tokens * topk * intermediate + tokens * shared intermediate]; of equal ids in one token only the first slot's row
//   uint8 exponent[the same / 8]: the exponent field of the group's largest magnitude as a float, within 16..254
// A row of act is in the order of k that the matrix instruction takes. Sums are FP32 in an order that the ids, the shape and the
// number of SMs decide: two runs give the same bits.
//
// Work: both launches first group the (token, slot) pairs by expert, in shared memory. An entry is an expert with some of its
// tokens, the columns of one matrix instruction: up to 8 in gate_up, DownPlan::columns in down. An expert with more tokens has
// several entries, next to each other, so that all but the first find the weights in L2. The shared expert follows as further
// entries.
//  - gate_up: a tile is 8 gate rows and the 8 up rows of the same channels (16 rows without gate), all of K, cut into parts of
//    256 k. A block, one to an SM, owns a range of the tiles of all entries. Its warps take whole tiles as long as there is one
//    for each; the parts of the tiles that are left are shared evenly, and their sums meet in shared memory at the end. x of all
//    tokens lies in shared memory once a block.
//  - down: a block owns 16 rows of the output (and goes to other 16 rows when it is done); its warps take turns at the parts
//    (entry, 256 k), each adding to sums of its own [token][row], which are added in the order of the warps.
// Each warp has a ring of kDepth parts (16 rows x 256 k, 2.3 KB) in shared memory, filled by asynchronous copies across tiles,
// entries and rows; in down the activations of the part travel with it.
//
// Overlap (9.0 and newer): the blocks of gate_up release the next launch only after their own wait, so when a block of down
// runs, the kernels before gate_up have ended and their writes (ids, router weights, the shared multiplier) lie in L2, where
// relaxed loads find them. So down reads those and its first weights before it waits for gate_up; act, and all writes, come
// after the wait.
//
// Needs: sm_80 or newer; dynamic shared memory as computed in moe_decode.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gb10/arch.cuh"
#include "gb10/launch.cuh"
#include "gb10/w4a16.cuh"
#include "moe_decode.h"
#include "ptx.cuh"

namespace gb10::moe_decode {

inline constexpr int kColumns = 8;         // of the matrix instruction: tokens of an entry
inline constexpr int kGateUpThreads = 768;  // at most
inline constexpr int kBounds = kGateUpThreads / 32 + 4;
inline constexpr int kDownThreads = 512;
inline constexpr int kStageStride = w4a16::token_stride(w4a16::kTileK);     // of one token of one part of down, in numbers

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int k_tiles(int k) { return divide_up(k, w4a16::kTileK); }
__host__ __device__ constexpr int x_stride(int k) { return w4a16::token_stride(k_tiles(k) * w4a16::kTileK); }

// The id of a (token, slot) pair as it is stored: an int64 in two words, an int32 with 0 above it.
struct RawId {
  int low, high;
};
__device__ __forceinline__ RawId raw_id(Arguments const& a, int pair) {
  std::int32_t const* const words = static_cast<std::int32_t const*>(a.ids) + (pair << (a.wide_ids ? 1 : 0));
  RawId id{load_relaxed(words), 0};
  if (a.wide_ids) id.high = load_relaxed(words + 1);
  return id;
}

// The expert that an id names, or -1 when it names none.
__device__ __forceinline__ int named_expert(Arguments const& a, RawId id) {
  return id.high == 0 && id.low >= 0 && id.low < (a.expert_map ? a.map_size : a.experts) ? id.low : -1;
}

// Its number among the local experts, or -1.
__device__ __forceinline__ int local_expert(Arguments const& a, int named) {
  if (!a.expert_map || named < 0) return named;
  int const local = load_relaxed(a.expert_map + named);
  return local >= 0 && local < a.experts ? local : -1;
}

// Up to 8 tokens that share an expert's weights. The shared expert is cut into entries of as many tiles as the routed ones have.
struct alignas(16) Entry {
  std::uint8_t const* codes;    // of its first row and k
  std::uint8_t const* scales;   // of its first row and k; gate_up, swizzled: of the matrix
  int tiles;                    // of channels (gate_up) or of k (down)
  int code_step, scale_step;    // from a row of a thread to its other row; scale_step is of no use when swizzled
  int columns;
  int act0;                     // act of row 0 would begin here; the row (pair, or tokens * topk + token) times width goes on top
  int width;                    // intermediate
  int first_row, apart;         // for swizzled scales: its first row, and from a row of a thread to its other row
  int left;                     // down: k from its first k to the end of a row
  int row_bytes;                // of codes; of scales it is an eighth
  float globals[2];             // gate, up; of w2 twice the same
};

// An item is a column of an entry: a row of act, a token, and where the token lies in gate_up's shared memory, in 64 bytes.
__device__ __forceinline__ std::uint32_t make_item(int row, int token, int x_step) { return row << 20 | token << 16 | token * x_step; }
__device__ __forceinline__ int row_of(std::uint32_t item) { return item >> 20; }
__device__ __forceinline__ int token_of(std::uint32_t item) { return item >> 16 & 15; }
__device__ __forceinline__ int place_of(std::uint32_t item) { return item & 0xFFFF; }

// Lists in shared memory, and how many bytes they take.
struct Lists {
  Entry* entries;
  std::uint32_t* items;     // [entries][8]
  std::uint32_t* table;     // [experts]: tokens that chose it, first entry << 16
  std::uint32_t* same;      // [pairs]: slots of the token with the pair's expert; bit 0 is slot 0
  std::int32_t* expert;     // [pairs]: -1 where it is none, or the token has it already
  std::uint32_t* heads;     // [16]: slots that are the first pair with their expert
  std::uint32_t* counts;    // [16]: entries of those
  float* weight;            // [pairs + tokens]: the router weight; after grouping: of all slots with the same expert
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
  int x_step;               // see make_item
  int shift;                // log2 of the most columns of an entry
};

template <bool kSwizzled>
__device__ __forceinline__ void make_entry(Entry& e, Side const& side, Matrix const& m, int expert, int width, int first_tile, int tiles,
                                           int columns, int act_row0) {
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
  copy4(&e.globals[0], globals, true);
  copy4(&e.globals[1], globals + m.global_columns - 1, true);
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
    RawId raw{-1, 0};
    float weight = 0.0f;
    if (slot) {
      raw = raw_id(a, pair);
      if (kWeights && !a.router_weight_on_input) weight = load_relaxed(a.weights + pair);
    }
    int const expert = local_expert(a, named_expert(a, raw));
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
    make_entry<kSwizzled>(e, side, is_shared ? side.shared : side.routed, expert, is_shared ? a.shared_w2.k : a.w2.k, part * side.tiles,
                          tiles, count, is_shared ? a.tokens * a.topk * (a.w2.k - a.shared_w2.k) : 0);
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

// One place of a warp's ring: codes [16 rows][128 bytes], the two neighbours of 16 bytes swapped in odd rows; a lane's two scale
// words; what the part is.
struct alignas(16) Note {
  int entry, tile, part, flags;
};
inline constexpr int kTile = 1, kPieceEnd = 2, kWhole = 4, kStop = 8;  // flags
struct alignas(16) Slot {
  unsigned char codes[2048];
  uint2 scales[32];
  Note note;
};

// Where a lane's copies come from and go to, in bytes from an entry's first row and k, or from a slot.
struct Lane {
  int row, piece;       // its rows of codes are row, row + 4, and the same 8 further down; its 16 bytes in each
  int to;
};
__device__ __forceinline__ Lane lane_of(int lane) {
  int const row = lane >> 3, piece = lane & 7;
  return {row, piece, row * 128 + (piece ^ (row & 1)) * 16};
}

// Starts the copies of a part. codes: of the lane's first row and piece; four_rows: from its row to the fourth after it.
__device__ __forceinline__ void copy_codes(Slot& slot, int to, std::uint8_t const* codes, int four_rows, int step) {
  unsigned char* const at = slot.codes + to;
  copy_weights(at, codes);
  copy_weights(at + 512, codes + four_rows);
  copy_weights(at + 1024, codes + step);
  copy_weights(at + 1536, codes + step + four_rows);
}

__device__ __forceinline__ void read_tile(w4a16::Tile& tile, Slot const& slot, int lane, int g, int t) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      tile.codes[i][j] = *reinterpret_cast<uint4 const*>(slot.codes + (g + 8 * i) * 128 + ((2 * t + j) ^ (g & 1)) * 16);
    }
  }
  uint2 const scales = slot.scales[lane];
  tile.scales[0] = scales.x;
  tile.scales[1] = scales.y;
}

// NaN stays NaN in both.
__device__ __forceinline__ float at_most(float v, float limit) { return v > limit ? limit : v; }
__device__ __forceinline__ float at_least(float v, float limit) { return v < limit ? limit : v; }

// gate is the only input of activations without gate; up is 1 then.
__device__ __forceinline__ float activate(Arguments const& a, float gate, float up) {
  switch (a.activation) {
    case Activation::kSwish:
      gate = at_most(gate, a.limit);
      up = at_least(at_most(up, a.limit), -a.limit) + a.beta;
      return __fdividef(gate, 1.0f + expf(-a.alpha * gate)) * up;
    case Activation::kGelu:
      return 0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)) * up;
    case Activation::kGeluTanh:
      return 0.5f * gate * (1.0f + tanhf(0.79788456080286536f * (gate + 0.044715f * gate * gate * gate))) * up;
    case Activation::kRelu2: {
      float const positive = at_least(gate, 0.0f);
      return positive * positive * up;
    }
    case Activation::kSwigluStep:
      return at_most(__fdividef(gate, 1.0f + expf(-gate)), a.limit) * at_least(at_most(up, a.limit), -a.limit);
    default:  // kSitu: alpha bounds the gate; beta, if positive, bounds up
      gate = __fdividef(a.alpha * tanhf(__fdividef(gate, a.alpha)), 1.0f + expf(-gate));
      return gate * (a.beta > 0.0f ? a.beta * tanhf(__fdividef(up, a.beta)) : up);
  }
}

// Powers of two for numbers whose largest magnitude has this exponent field (16..254): to [2^14, 2^15), and back.
__device__ __forceinline__ float power_to(std::uint32_t exponent) { return __uint_as_float((268u - exponent) << 23); }
__device__ __forceinline__ float power_back(std::uint32_t exponent) { return __uint_as_float((exponent - 14u) << 23); }

// Channels of one tile of gate_up.
__host__ __device__ __forceinline__ int channels_of(bool gated) { return gated ? 8 : 16; }

// Where channel `i` of a group of 8 lies in a row of act.
__device__ __forceinline__ int act_place(int i) { return w4a16::kNaturalOrder ? i : i < 4 ? 2 * i : 2 * i - 7; }

// The sums of a tile to act. c: this thread's rows g and g + 8, columns 2t and 2t + 1; all lanes of a warp together.
__device__ __forceinline__ void store_act(Arguments const& a, Entry const& e, std::uint32_t const* items, std::uint32_t const* same,
                                       int tile, float4 sums, float const* inverse, int values) {
  int const lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  __half* const act = static_cast<__half*>(a.act);
  std::uint8_t* const exponents = reinterpret_cast<std::uint8_t*>(act + values);
  float const gate_scale = w4a16::kUnscale * e.globals[0], up_scale = w4a16::kUnscale * e.globals[1];
  int const channel = tile * channels_of(a.gated);
  int const routed_pairs = a.tokens * a.topk;
  int const numbers = a.gated ? 2 : 4;  // of a thread; without gate its two rows are channels of two groups
#pragma unroll 1
  for (int v = 0; v < numbers; ++v) {
    int const column = 2 * t + v % 2, group = v / 2;
    if (v % 2 >= e.columns) continue;
    std::uint32_t const item = items[column];
    int const row = row_of(item);
    float const back = inverse[token_of(item)];
    float const upper = v % 2 ? sums.y : sums.x, lower = v % 2 ? sums.w : sums.z;
    float const gate = group ? lower * back * up_scale : upper * back * gate_scale;
    float const up = lower * back * up_scale;
    bool const weigh = a.router_weight_on_input && row < routed_pairs && column < e.columns;
    float value = 0.0f;
    std::uint32_t slots = weigh ? same[row] : 1u;
#pragma unroll 1
    do {
      float weight = 1.0f;
      if (weigh) weight = load_relaxed(a.weights + token_of(item) * a.topk + __ffs(slots) - 1);
      value += activate(a, weight * gate, a.gated ? weight * up : 1.0f);
      slots &= slots - 1;
    } while (weigh && slots);
    std::uint32_t largest = __float_as_uint(value) & 0x7FFFFFFFu;
    largest = max(largest, __shfl_xor_sync(~0u, largest, 4));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 8));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 16));
    std::uint32_t const exponent = min(max(largest >> 23, 16u), 254u);
    if (column < e.columns) {
      int const place = e.act0 + row * e.width + channel + 8 * group;
      act[place + act_place(g)] = __float2half_rn(value * power_to(exponent));
      if (g == 0) exponents[place / 8] = static_cast<std::uint8_t>(exponent);
    }
  }
}

struct GateUpPlan {
  int tiles, shared_tiles;      // of an expert
  int limit;                    // of entries
  int parts;                    // of 256 k
  int last_chunk, last_piece;   // of 64 k; of 32 k
  int row_bytes;
  int tile_rows, lane_rows;     // from tile to tile, from row to row, of gate rows
  int tile_bytes, four_rows;    // of codes, from tile to tile; from row to fourth row
  int channels;                 // of a tile
  int apart;                    // see Side
  int x_stride;                 // of a token in shared memory, in numbers
  int values;                   // of act
  bool bfloat16;
};

// Shared memory: x [tokens][x_stride] in f16; Slot ring[warps][kDepth]; float4 pieces[2 * warps][32]; float inverse[16];
// uint32 magnitude[16]; int bounds[kBounds]; Lists.
template <bool kSwizzled, int kDepth>
__global__ void __launch_bounds__(kGateUpThreads, 1)
gate_up(__grid_constant__ Arguments const a, __grid_constant__ GateUpPlan const plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  int const thread = threadIdx.x, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  unsigned const own_warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  int const warp = own_warp, warps = blockDim.x / 32;
  int const k = a.w13.k, parts = plan.parts, stride = plan.x_stride;
  int const pairs = a.tokens * a.topk;

  __half* const x = reinterpret_cast<__half*>(shared);
  Slot* const ring = reinterpret_cast<Slot*>(x + a.tokens * stride) + warp * kDepth;
  float4* const pieces = reinterpret_cast<float4*>(ring + (warps - warp) * kDepth);
  float* const inverse = reinterpret_cast<float*>(pieces + 2 * blockDim.x);
  std::uint32_t* const magnitude = reinterpret_cast<std::uint32_t*>(inverse + kMaxTokens);
  int* const bounds = reinterpret_cast<int*>(magnitude + kMaxTokens);
  Lists const l = lists_at(bounds + kBounds, plan.limit, pairs, a.experts);

  clear_lists(a, l, plan.limit, thread, blockDim.x);
  if (thread < kMaxTokens) magnitude[thread] = 0;
  __syncthreads();
  wait_for_previous();
  release_next();

  // x as it is, one part of 256 k of a token at a time.
  auto const for_parts = [&](auto&& body) {
    int k_tile = warp, token = 0;
#pragma unroll 1
    for (;; k_tile += warps) {
#pragma unroll 1
      for (; k_tile >= parts; k_tile -= parts) ++token;
      if (token >= a.tokens) break;
      body(token, k_tile, x + token * stride + k_tile * (4 * w4a16::chunk_stride()) + lane / 8 * w4a16::chunk_stride() + lane % 8 * 8);
    }
  };
  for_parts([&](int token, int k_tile, __half* to) {
    int const at = k_tile * w4a16::kTileK + lane * 8;
    bool const valid = at < k;
    copy16(to, static_cast<__half const*>(a.x) + token * k + (valid ? at : 0), valid);
  });

  Side const side{a.w13, a.shared_w13, plan.tiles, plan.shared_tiles, plan.tile_rows, plan.channels, plan.apart, a.up_first, stride / 32, 3};
  int const entries = group_pairs<kSwizzled, false>(a, side, l, thread, blockDim.x);
  end_copies();

  // This block's tiles: `rounds` whole ones for each warp, then `rest` tiles for all together.
  unsigned const total = entries * plan.tiles, share = total / gridDim.x, more = total % gridDim.x;
  int const begin = blockIdx.x * share + min(blockIdx.x, more), count = share + (blockIdx.x < more ? 1 : 0);
  int const rounds = count / warps, rest = count - rounds * warps;
  unsigned const rest_parts = rest * parts;
  int const rest_begin = rest_parts * own_warp / (blockDim.x / 32), rest_end = rest_parts * (own_warp + 1) / (blockDim.x / 32);
  if (lane == 0) bounds[warp] = rest_begin;
  if (thread == 0) bounds[warps] = rest_parts;

  Lane const own = lane_of(lane);
  int lane_bytes = own.row * plan.lane_rows * plan.row_bytes, lane_scale_bytes = g * plan.lane_rows * (plan.row_bytes >> 3);
  keep(lane_bytes);
  keep(lane_scale_bytes);
  int round = -1, left = 0;             // of the parts asked for: the round, and how many of it are not
  int entry = 0, tile = 0, part = 0, piece = 0;
  auto const ask = [&](Slot& slot) {
    if (left == 0) {
      ++round;
      int v = round * warps + warp;
      part = 0;
      left = round < rounds ? parts : 0;
      if (round == rounds) {
        v = static_cast<unsigned>(rest_begin) / parts;
        part = rest_begin - v * parts;
        left = rest_end - rest_begin;
        piece = v + warp;
        v += rounds * warps;
      }
      if (left == 0) {
        round = rounds;  // nothing is left, and nothing will be
        if (lane == 0) slot.note.flags = kStop;
        return;
      }
      entry = static_cast<unsigned>(begin + v) / plan.tiles;
      tile = (begin + v) - entry * plan.tiles;
    }
    Entry const& e = l.entries[entry];
    bool const exists = tile < e.tiles;
    if (exists) {
      unsigned const offset = lane_bytes + min(part * 8 + own.piece, plan.last_piece) * 16 + tile * plan.tile_bytes;
      copy_codes(slot, own.to, e.codes + offset, plan.four_rows, e.code_step);
      int const chunk = min(part * 4 + t, plan.last_chunk);
      std::uint8_t const* scales[2];
      if constexpr (kSwizzled) {
        int const first = e.first_row + tile * plan.tile_rows + g * plan.lane_rows;
        scales[0] = e.scales + static_cast<unsigned>(w4a16::scale_offset<true>(first, chunk * 4, plan.row_bytes / 8));
        scales[1] = e.scales + static_cast<unsigned>(w4a16::scale_offset<true>(first + e.apart, chunk * 4, plan.row_bytes / 8));
      } else {
        scales[0] = e.scales + static_cast<unsigned>(tile * (plan.tile_bytes >> 3) + lane_scale_bytes + chunk * 4);
        scales[1] = scales[0] + e.scale_step;
      }
      copy_scales(&slot.scales[lane].x, scales[0]);
      copy_scales(&slot.scales[lane].y, scales[1]);
    }
    bool const end = part == parts - 1 || left == 1;
    if (lane == 0) {
      slot.note = {entry, round < rounds ? tile : piece, part, (exists ? kTile : 0) | (end ? kPieceEnd : 0) | (round < rounds ? kWhole : 0)};
    }
    --left;
    if (++part == parts) {
      part = 0;
      ++piece;
      if (++tile == plan.tiles) {
        tile = 0;
        ++entry;
      }
    }
  };
#pragma unroll 1
  for (int d = 0; d < kDepth; ++d) {
    ask(ring[d]);
    end_copies();
  }

  // x to f16 in the order of the matrix instruction, in place; every lane works on what it copied.
  wait_for_copies<kDepth>();
  if (plan.bfloat16) {
    for_parts([&](int token, int, __half* to) {
      std::uint32_t const own = w4a16::magnitude<__nv_bfloat16>(*reinterpret_cast<uint4 const*>(to));
      std::uint32_t const largest = __reduce_max_sync(~0u, own);
      if (lane == 0) atomicMax(&magnitude[token], largest);
    });
    __syncthreads();
  }
  for_parts([&](int token, int, __half* to) {
    uint4& v = *reinterpret_cast<uint4*>(to);
    if (plan.bfloat16) v = w4a16::staged<__nv_bfloat16>(v, w4a16::factor_for<__nv_bfloat16>(magnitude[token]).scale);
    else v = w4a16::in_k_order(v);
  });
  if (thread < a.tokens) inverse[thread] = plan.bfloat16 ? w4a16::factor_for<__nv_bfloat16>(magnitude[thread]).inverse : 1.0f;
  __syncthreads();

  __half const* const x_thread = x + t * w4a16::chunk_stride();
  float c[4] = {};
  int at = 0;
#pragma unroll 1
  while (true) {
    wait_for_copies<kDepth - 1>();
    __syncwarp();
    Slot& slot = ring[at];
    at = at + 1 == kDepth ? 0 : at + 1;
    Note const now = slot.note;
    if (now.flags & kStop) break;
    w4a16::Tile held;
    read_tile(held, slot, lane, g, t);
    __syncwarp();
    ask(slot);
    end_copies();
    if (now.flags & kTile) {
      std::uint32_t const item = l.items[now.entry * kColumns + g];
      w4a16::multiply(c, held, x_thread + (place_of(item) * 32 + now.part * (4 * w4a16::chunk_stride())));
    }
    if (now.flags & kPieceEnd) {
      float4 const sum{c[0], c[1], c[2], c[3]};
      c[0] = c[1] = c[2] = c[3] = 0.0f;
      if (!(now.flags & kWhole)) {
        pieces[now.tile * 32 + lane] = sum;
      } else if (now.flags & kTile) {
        store_act(a, l.entries[now.entry], l.items + now.entry * kColumns, l.same, now.tile, sum, inverse, plan.values);
      }
    }
  }
  if (rest == 0) return;
  __syncthreads();
  // A warp's n-th piece of tile v lies at v + warp: warps share at most one tile with the next.
#pragma unroll 1
  for (int v = warp; v < rest; v += warps) {
    int const from = lane < warps ? bounds[lane] : 0, to = lane < warps ? bounds[lane + 1] : 0;
    float4 sum{};
#pragma unroll 1
    for (std::uint32_t which = __ballot_sync(~0u, from < to && from < (v + 1) * parts && to > v * parts); which; which &= which - 1) {
      float4 const part = pieces[(v + __ffs(which) - 1) * 32 + lane];
      sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    int const place = begin + rounds * warps + v;
    entry = static_cast<unsigned>(place) / plan.tiles;
    tile = place - entry * plan.tiles;
    Entry const& e = l.entries[entry];
    if (tile < e.tiles) store_act(a, e, l.items + entry * kColumns, l.same, tile, sum, inverse, plan.values);
  }
}

struct DownPlan {
  int values;                   // of act
  int tiles, shared_tiles;      // of k, of an expert
  int limit;                    // of entries
  int columns_shift;            // log2 of the most tokens of an entry
  bool bfloat16;
};

// Activations of a part beside it in the ring: [columns] in f16, float inverse[4 * columns], uint8 exponents[columns][32].
__host__ __device__ constexpr int stage_bytes(int columns) { return columns * (2 * kStageStride + w4a16::kTileK / 8 + 16); }
__host__ __device__ constexpr int down_slot_bytes(int columns) { return static_cast<int>(sizeof(Slot)) + stage_bytes(columns); }

// Shared memory: ring[warps][kDepth] of a Slot and its activations; float partial[2][warps][tokens][16]; Lists.
template <bool kSwizzled, int kDepth>
__global__ void __launch_bounds__(kDownThreads, 1)
down(__grid_constant__ Arguments const a, __grid_constant__ DownPlan const plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  int const thread = threadIdx.x, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3, warps = blockDim.x / 32;
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  int const pairs = a.tokens * a.topk, sums = a.tokens * w4a16::kTileRows;
  int const columns = 1 << plan.columns_shift, slot_bytes = down_slot_bytes(columns);
  unsigned char* const ring = shared + warp * kDepth * slot_bytes;
  float* const partials = reinterpret_cast<float*>(shared + warps * kDepth * slot_bytes);
  Lists const l = lists_at(partials + 2 * warps * sums, plan.limit, pairs, a.experts);
  int const row_tiles = a.w2.rows / w4a16::kTileRows;

  clear_lists(a, l, plan.limit, thread, blockDim.x);
  if (plan.shared_tiles > 0 && thread < a.tokens) {
    float multiplier = 1.0f;
    if (a.shared_multiplier && !a.multiplier_as_x) multiplier = load_relaxed(static_cast<float const*>(a.shared_multiplier) + thread);
    if (a.shared_multiplier && a.multiplier_as_x) {
      std::uint16_t const bits = load_relaxed(static_cast<std::uint16_t const*>(a.shared_multiplier) + thread);
      multiplier = plan.bfloat16 ? __uint_as_float(static_cast<std::uint32_t>(bits) << 16) : __half2float(__ushort_as_half(bits));
    }
    l.weight[pairs + thread] = multiplier;
  }
  __syncthreads();
  Side const side{a.w2, a.shared_w2, plan.tiles, plan.shared_tiles, 0, w4a16::kTileK, 8, false, 0, plan.columns_shift};
  int const entries = group_pairs<kSwizzled, true>(a, side, l, thread, blockDim.x);
  end_copies();

  // Without any entry the sums are zeros.
  if (entries == 0) {
    wait_for_copies<0>();
    wait_for_previous();
    release_next();
#pragma unroll 1
    for (int row_tile = blockIdx.x; row_tile < row_tiles; row_tile += gridDim.x) {
#pragma unroll 1
      for (int i = thread; i < sums; i += blockDim.x) {
        static_cast<std::uint16_t*>(a.out)[static_cast<std::int64_t>(i / 16) * a.w2.rows + row_tile * 16 + i % 16] = 0;
      }
    }
    return;
  }
  // Warps without a part of a tile of rows leave as soon as the globals that they copied are there.
  int const busy = min(warps, entries * plan.tiles);
  if (warp >= busy) {
    wait_for_copies<0>();
    barrier_arrive(2, blockDim.x);
    return;
  }

  Lane const own = lane_of(lane);
  int const step_entry = busy / plan.tiles, step_tile = busy % plan.tiles;
  int const first_entry = warp / plan.tiles, first_tile = warp % plan.tiles;
  int row_tile = blockIdx.x, entry = first_entry, tile = first_tile;
  // Starts the copies of the next part's weights.
  auto const ask = [&](Slot& slot) {
    if (row_tile >= row_tiles) {
      if (lane == 0) slot.note = {0, row_tile, 0, kStop};
      return;
    }
    Entry const& e = l.entries[entry];
    bool const exists = tile < e.tiles;
    if (exists) {
      int const row_bytes = e.row_bytes, row = row_tile * w4a16::kTileRows;
      int const last = e.left / w4a16::kThreadK - 1;
      unsigned const offset = (row + own.row) * row_bytes + min(tile * 8 + own.piece, 2 * last + 1) * 16;
      copy_codes(slot, own.to, e.codes + offset, 4 * row_bytes, 8 * row_bytes);
      int const chunk = min(tile * 4 + t, last);
      unsigned first = (row + g) * (row_bytes >> 3) + chunk * 4, second = first + row_bytes;
      if constexpr (kSwizzled) {
        first = w4a16::scale_offset<true>(row + g, chunk * 4, row_bytes / 8);
        second = w4a16::scale_offset<true>(row + g + 8, chunk * 4, row_bytes / 8);
      }
      copy_scales(&slot.scales[lane].x, e.scales + first);
      copy_scales(&slot.scales[lane].y, e.scales + second);
    }
    if (lane == 0) slot.note = {entry, row_tile, tile, exists ? kTile : 0};
    entry += step_entry;
    tile += step_tile;
    if (tile >= plan.tiles) {
      tile -= plan.tiles;
      ++entry;
    }
    if (entry >= entries) {
      row_tile += gridDim.x;
      entry = first_entry;
      tile = first_tile;
    }
  };

  __half const* const act = static_cast<__half const*>(a.act);
  std::uint8_t const* const exponents = reinterpret_cast<std::uint8_t const*>(act + plan.values);
  int const to_lane = lane / 8 * w4a16::chunk_stride() + lane % 8 * 8;
  int const inverse_at = columns * 2 * kStageStride, exponents_at = inverse_at + columns * 16;
  // Starts the copies of the activations of the part in a slot, as they are.
  auto const ask_act = [&](Slot& slot) {
    Note const part = slot.note;
    if (!(part.flags & kTile)) return;
    unsigned char* const stage = reinterpret_cast<unsigned char*>(&slot) + sizeof(Slot);
    Entry const& e = l.entries[part.entry];
    int const count = e.columns, width = e.width;
    int const begin = part.part * w4a16::kTileK, left = e.left - begin, act0 = e.act0 + begin;
    bool const valid = lane * 8 < left, exponents_valid = lane * 32 < left && lane < 8;
    std::uint32_t const* const items = l.items + part.entry * kColumns;
#pragma unroll 1
    for (int column = 0; column < count; ++column) {
      int const row = act0 + row_of(items[column]) * width;
      copy16(stage + 2 * (column * kStageStride + to_lane), act + (row + (valid ? lane * 8 : 0)), valid);
      if (lane < 8) copy4(stage + exponents_at + column * 32 + lane * 4, exponents + (row / 8 + (exponents_valid ? lane * 4 : 0)), exponents_valid);
    }
  };
  auto const slot_at = [&](int i) -> Slot& { return *reinterpret_cast<Slot*>(ring + i * slot_bytes); };

#pragma unroll 1
  for (int d = 0; d < kDepth; ++d) ask(slot_at(d));
#pragma unroll 1
  for (int i = lane; i < sums; i += 32) partials[warp * sums + i] = 0.0f;
  __syncwarp();
  wait_for_previous();
  release_next();
#pragma unroll 1
  for (int d = 0; d < kDepth; ++d) {
    ask_act(slot_at(d));
    end_copies();
  }
  wait_for_copies<kDepth>();  // the globals of the entries
  barrier_wait(2, blockDim.x);

  int partial_set = warp * sums;  // the set of partial sums in use
  int at = 0, current = blockIdx.x;
#pragma unroll 1
  while (true) {
    wait_for_copies<kDepth - 1>();
    __syncwarp();
    Slot& slot = slot_at(at);
    unsigned char* const stage = reinterpret_cast<unsigned char*>(&slot) + sizeof(Slot);
    at = at + 1 == kDepth ? 0 : at + 1;
    Note const now = slot.note;
    if (now.tile != current) {
      // The last part of these rows is done. A set is filled again two tiles of rows later, past the next barrier, which all
      // warps reach when they have read it.
      barrier_wait(1, 32 * busy);
      float const* const from = partials + partial_set - warp * sums;
#pragma unroll 1
      for (int i = thread; i < sums; i += 32 * busy) {
        float sum = from[i];
#pragma unroll 4
        for (int w = 1; w < busy; ++w) sum += from[w * sums + i];
        std::int64_t const place = static_cast<std::int64_t>(i / w4a16::kTileRows) * a.w2.rows + current * w4a16::kTileRows + i % w4a16::kTileRows;
        if (plan.bfloat16) static_cast<__nv_bfloat16*>(a.out)[place] = __float2bfloat16_rn(sum);
        else static_cast<__half*>(a.out)[place] = __float2half_rn(sum);
      }
      if (now.flags & kStop) break;
      current = now.tile;
      partial_set = 2 * warp * sums + warps * sums - partial_set;
#pragma unroll 1
      for (int i = lane; i < sums; i += 32) partials[partial_set + i] = 0.0f;
      __syncwarp();
    }
    if (now.flags & kTile) {
      Entry const& e = l.entries[now.entry];
      int const count = e.columns;
      // All groups of 8 channels of a token to one power of two.
#pragma unroll 1
      for (int column = 0; column < count; ++column) {
        uint4& v = *reinterpret_cast<uint4*>(stage + 2 * (column * kStageStride + to_lane));
        int const own = stage[exponents_at + column * 32 + lane], largest = __reduce_max_sync(~0u, own);
        __half const half = __float2half_rn(__uint_as_float(static_cast<std::uint32_t>(max(127 + own - largest, 0)) << 23));
        std::uint32_t const factor = w4a16::twice(__half_as_ushort(half));
        v = {w4a16::mul2<__half>(v.x, factor), w4a16::mul2<__half>(v.y, factor), w4a16::mul2<__half>(v.z, factor),
             w4a16::mul2<__half>(v.w, factor)};
        if (lane == 0) *reinterpret_cast<float*>(stage + inverse_at + column * 4) = power_back(max(largest, 16));
      }
      __syncwarp();
      w4a16::Tile held;
      read_tile(held, slot, lane, g, t);
      float c[4] = {};
      w4a16::multiply(c, held, reinterpret_cast<__half const*>(stage) + (g < count ? g : 0) * kStageStride + t * w4a16::chunk_stride());
      float const global = w4a16::kUnscale * e.globals[0];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        int const column = 2 * t + j;
        if (column < count) {
          std::uint32_t const item = l.items[now.entry * kColumns + column];
          float const back = *reinterpret_cast<float const*>(stage + inverse_at + column * 4);
          float const factor = l.weight[row_of(item)] * global;
          float* const to = partials + (partial_set + g + token_of(item) * w4a16::kTileRows);
          to[0] += c[j] * back * factor;
          to[8] += c[2 + j] * back * factor;
        }
      }
    }
    __syncwarp();
    ask(slot);
    __syncwarp();
    ask_act(slot);
    end_copies();
  }
}

}  // namespace gb10::moe_decode
