// The first launch of moe_decode: act[token, e, i] = activation(gate, up) of every entry, to the workspace (moe_decode.h).
//
// A tile is 8 gate rows and the 8 up rows of the same channels (16 rows without gate), all of K, cut into parts of 256 k. A block,
// one to an SM, owns a range of the tiles of all entries. Its warps take whole tiles as long as there is one for each; the parts of
// the tiles that are left are shared evenly, and their sums meet in shared memory at the end. x of all tokens lies in shared memory
// once a block.
#pragma once

#include "entries.cuh"
#include "ring.cuh"

namespace gb10::moe_decode {

inline constexpr int kGateUpWarps = 16;     // at most
inline constexpr int kGateUpThreads = 768;  // that registers are dealt out for: 80 each, so that a block of down may live beside
inline constexpr int kGateUpDepth = 2;      // parts that a warp keeps in flight
inline constexpr int kBounds = kGateUpWarps + 4;

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
      if (weigh) weight = ptx::load_relaxed(a.weights + token_of(item) * a.topk + __ffs(slots) - 1);
      value += moe::activate(a, weight * gate, a.gated ? weight * up : 1.0f);
      slots &= slots - 1;
    } while (weigh && slots);
    std::uint32_t largest = __float_as_uint(value) & 0x7FFFFFFFu;
    largest = max(largest, __shfl_xor_sync(~0u, largest, 4));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 8));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 16));
    std::uint32_t const exponent = w4a16::exponent_of(largest >> 23);
    if (column < e.columns) {
      int const place = e.act0 + row * e.width + channel + 8 * group;
      act[place + act_place(g)] = __float2half_rn(value * w4a16::power_to(exponent));
      if (g == 0) exponents[place / 8] = static_cast<std::uint8_t>(exponent);
    }
  }
}

struct GateUpPlan {
  int tiles, shared_tiles;     // of an expert
  int limit;                   // of entries
  int parts;                   // of 256 k
  int last_chunk, last_piece;  // of 64 k; of 32 k
  int row_bytes;
  int tile_rows, lane_rows;   // from tile to tile, from row to row, of gate rows
  int tile_bytes, four_rows;  // of codes, from tile to tile; from row to fourth row
  int channels;               // of a tile
  int apart;                  // see Side
  int x_stride;               // of a token in shared memory, in numbers
  int values;                 // of act
  bool bfloat16;
};

inline GateUpPlan gate_up_plan(Arguments const& a, Sizes const& s, bool bfloat16) {
  GateUpPlan plan{};
  plan.tiles = s.channel_tiles;
  plan.shared_tiles = s.shared_channel_tiles;
  plan.limit = entry_limit(s.pairs, s.tokens, kColumns, s.channel_tiles, s.shared_channel_tiles);
  plan.parts = k_tiles(a.w13.k);
  plan.last_chunk = a.w13.k / w4a16::kThreadK - 1;
  plan.last_piece = 2 * plan.last_chunk + 1;
  plan.row_bytes = a.w13.k / 2;
  plan.tile_rows = a.gated && !a.interleaved ? 8 : 16;
  plan.tile_bytes = plan.tile_rows * plan.row_bytes;
  plan.four_rows = 4 * (a.interleaved ? 2 : 1) * plan.row_bytes;
  plan.channels = channels_of(a.gated);
  plan.lane_rows = a.interleaved ? 2 : 1;
  plan.apart = !a.gated ? 8 : a.interleaved ? 1 : 0;
  plan.x_stride = x_stride(a.w13.k);
  plan.values = s.values;
  plan.bfloat16 = bfloat16;
  return plan;
}

inline int gate_up_bytes(Arguments const& a, Sizes const& s, int warps) {
  int const limit = entry_limit(s.pairs, s.tokens, kColumns, s.channel_tiles, s.shared_channel_tiles);
  return s.tokens * x_stride(a.w13.k) * 2 + warps * (kGateUpDepth * static_cast<int>(sizeof(Slot)) + 2 * 32 * 16) +
         (2 * kMaxTokens + kBounds) * 4 + lists_bytes(limit, s.pairs, s.tokens, a.experts);
}

// Shared memory: x [tokens][x_stride] in f16; Slot ring[warps][kGateUpDepth]; float4 pieces[2 * warps][32]; float inverse[16];
// uint32 magnitude[16]; int bounds[kBounds]; Lists.
template <bool kSwizzled>
__global__ void __launch_bounds__(kGateUpThreads, 1)
    gate_up(__grid_constant__ Arguments const a, __grid_constant__ GateUpPlan const plan) {
  unsigned char* const shared = ptx::dynamic_shared();
  int const thread = threadIdx.x, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  unsigned const own_warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  int const warp = own_warp, warps = blockDim.x / 32;
  int const k = a.w13.k, parts = plan.parts, stride = plan.x_stride;
  int const pairs = a.tokens * a.topk;

  __half* const x = reinterpret_cast<__half*>(shared);
  Slot* const ring = reinterpret_cast<Slot*>(x + a.tokens * stride) + warp * kGateUpDepth;
  float4* const pieces = reinterpret_cast<float4*>(ring + (warps - warp) * kGateUpDepth);
  float* const inverse = reinterpret_cast<float*>(pieces + 2 * blockDim.x);
  std::uint32_t* const magnitude = reinterpret_cast<std::uint32_t*>(inverse + kMaxTokens);
  int* const bounds = reinterpret_cast<int*>(magnitude + kMaxTokens);
  Lists const l = lists_at(bounds + kBounds, plan.limit, pairs, a.experts);

  clear_lists(a, l, plan.limit, thread, blockDim.x);
  if (thread < kMaxTokens) magnitude[thread] = 0;
  __syncthreads();
  ptx::wait_for_previous();
  ptx::release_next();

  // x as it is, one part of 256 k of a token at a time.
  auto const for_parts = [&](auto&& body) {
    int k_tile = warp, token = 0;
#pragma unroll 1
    for (;; k_tile += warps) {
#pragma unroll 1
      for (; k_tile >= parts; k_tile -= parts) ++token;
      if (token >= a.tokens) break;
      body(token, k_tile,
           x + token * stride + k_tile * (4 * w4a16::chunk_stride()) + lane / 8 * w4a16::chunk_stride() + lane % 8 * 8);
    }
  };
  for_parts([&](int token, int k_tile, __half* to) {
    int const at = k_tile * w4a16::kTileK + lane * 8;
    bool const valid = at < k;
    ptx::copy16(to, static_cast<__half const*>(a.x) + token * k + (valid ? at : 0), valid);
  });

  Side const side{a.w13,         a.shared_w13, plan.tiles, plan.shared_tiles, plan.tile_rows,
                  plan.channels, plan.apart,   a.up_first, stride / 32,       3};
  int const entries = group_pairs<kSwizzled, false>(a, side, l, thread, blockDim.x);
  ptx::end_copies();

  // This block's tiles: `rounds` whole ones for each warp, then `rest` tiles for all together.
  unsigned const total = entries * plan.tiles, share = total / gridDim.x, more = total % gridDim.x;
  int const begin = blockIdx.x * share + min(blockIdx.x, more), count = share + (blockIdx.x < more ? 1 : 0);
  int const rounds = count / warps, rest = count - rounds * warps;
  unsigned const rest_parts = rest * parts;
  int const rest_begin = rest_parts * own_warp / (blockDim.x / 32), rest_end = rest_parts * (own_warp + 1) / (blockDim.x / 32);
  if (lane == 0) bounds[warp] = rest_begin;
  if (thread == 0) bounds[warps] = rest_parts;

  int const own_row = lane >> 3, own_piece = lane & 7, to = w4a16::code_target(lane);
  int lane_bytes = own_row * plan.lane_rows * plan.row_bytes, lane_scale_bytes = g * plan.lane_rows * (plan.row_bytes >> 3);
  ptx::keep(lane_bytes);
  ptx::keep(lane_scale_bytes);
  int round = -1, left = 0;  // of the parts asked for: the round, and how many of it are not
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
      unsigned const offset = lane_bytes + min(part * 8 + own_piece, plan.last_piece) * 16 + tile * plan.tile_bytes;
      copy_codes(slot, to, e.codes + offset, plan.four_rows, e.code_step);
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
      ptx::copy4(&slot.scales[lane].x, scales[0]);
      ptx::copy4(&slot.scales[lane].y, scales[1]);
    }
    bool const end = part == parts - 1 || left == 1;
    if (lane == 0) {
      slot.note = {entry, round < rounds ? tile : piece, part,
                   (exists ? kTile : 0) | (end ? kPieceEnd : 0) | (round < rounds ? kWhole : 0)};
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
  for (int d = 0; d < kGateUpDepth; ++d) {
    ask(ring[d]);
    ptx::end_copies();
  }

  // x to f16 in the order of the matrix instruction, in place; every lane works on what it copied.
  ptx::wait_for_copies<kGateUpDepth>();
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
    ptx::wait_for_copies<kGateUpDepth - 1>();
    __syncwarp();
    Slot& slot = ring[at];
    at = at + 1 == kGateUpDepth ? 0 : at + 1;
    Note const now = slot.note;
    if (now.flags & kStop) break;
    w4a16::Tile held;
    w4a16::read(held, slot, lane);
    __syncwarp();
    ask(slot);
    ptx::end_copies();
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
    for (std::uint32_t which = __ballot_sync(~0u, from < to && from < (v + 1) * parts && to > v * parts); which;
         which &= which - 1) {
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

}  // namespace gb10::moe_decode
