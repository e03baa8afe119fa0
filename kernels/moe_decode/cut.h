// How a call of moe_decode is cut: sizes, shared memory and what the kernels are told. Host code.
#pragma once

#include <algorithm>

#include "moe_decode.cuh"

namespace gb10::moe_decode {

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

inline int gate_up_bytes(Arguments const& a, Sizes const& s, int warps, int depth) {
  int const limit = entry_limit(s.pairs, s.tokens, kColumns, s.channel_tiles, s.shared_channel_tiles);
  return s.tokens * x_stride(a.w13.k) * 2 + warps * (depth * static_cast<int>(sizeof(Slot)) + 2 * 32 * 16) + (2 * kMaxTokens + kBounds) * 4 +
         lists_bytes(limit, s.pairs, s.tokens, a.experts);
}

inline int down_limit(Sizes const& s, int columns) { return entry_limit(s.pairs, s.tokens, columns, s.k_tiles, s.shared_k_tiles); }

inline int down_bytes(Arguments const& a, Sizes const& s, int warps, int depth, int columns) {
  return warps * (depth * down_slot_bytes(columns) + 2 * s.tokens * w4a16::kTileRows * 4) +
         lists_bytes(down_limit(s, columns), s.pairs, s.tokens, a.experts);
}

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

inline DownPlan down_plan(Sizes const& s, int columns, bool bfloat16) {
  DownPlan plan{};
  plan.values = s.values;
  plan.tiles = s.k_tiles;
  plan.shared_tiles = s.shared_k_tiles;
  plan.limit = down_limit(s, columns);
  while (1 << plan.columns_shift < columns) ++plan.columns_shift;
  plan.bfloat16 = bfloat16;
  return plan;
}

}  // namespace gb10::moe_decode
