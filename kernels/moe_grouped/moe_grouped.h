// A mixture-of-experts layer for many tokens after routing, straight from NVFP4 weights: W4A16, one copy of the weights for decode
// (moe_decode) and for prefill. Arguments, names and results are those of moe_decode.h; only the number of tokens has no limit
// but that of the workspace, and the weights are multiplied in the type of x.
//
// Four launches, with many tokens five:
//   count    pairs (token, slot) of each expert, some pairs a block; x into the operands' order of k; with few tokens all of group
//   group    pairs by expert, and tiles of at most 16, 64 or 176 tokens of one expert
//   gate_up  act[pair] = activation(w13[e] . x[token]) of each tile, 128 channels at a time
//   down     parts[pair] = w2[e] . act[pair], 256 rows at a time
//   combine  out[token] = sum over slots of weight * parts[pair], plus multiplier * the shared expert's part
//
// Each lets the next one begin when its last blocks run; the next one waits for its end before it reads.
//
// The shared expert is one more expert, which all tokens chose. A pair without expert takes part in nothing.
//
// Numbers: e2m1 * block scale is exact in bf16 and in f16; sums are FP32; act and parts are rounded to the type of x. The sum of a
// token does not depend on which tile it is in: two calls give the same bits.
//
// Two of them exist twice: multiply.cuh for every target (mma.sync), warpgroups.cuh for 9.0 (wgmma, 196 KB of shared memory a block),
// where experts have more than kWarpgroupsFrom tokens on the average, x is bf16, scales are linear and the activation is a gated swish.
//
// Needs: sm_80 or newer (cp.async, mma.sync with bf16), 99 KB of shared memory a block; on 9.0 code for sm_90a.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/moe.h"
#include "gb10/types.h"

namespace gb10::moe_grouped {

// The most tokens of a tile. Small ones have registers for more blocks at once, and few tokens an expert need no large ones.
// Those of warpgroups are larger still, for each weight is decoded once for a tile; the workspace has room for the smaller ones.
inline constexpr int kSmallTile = 16, kLargeTile = 64, kWideTile = 176;
constexpr int tile_tokens(std::int64_t pairs, std::int64_t experts) {
  return pairs <= kSmallTile * experts ? kSmallTile : kLargeTile;
}

// Warpgroups multiply where an expert has more tokens than that on the average: below, the others read the weights faster.
inline constexpr int kWarpgroupsFrom = 64;

inline constexpr int kMaxExperts = 8192;
inline constexpr int kMaxWidth = 32768;   // of hidden and intermediate
inline constexpr int kMaxTokens = 32768;  // 32 bits hold a pair, and a row of parts

struct Arguments : moe::Layer {
  void* workspace;  // workspace_bytes() of memory, at a multiple of 16
};

// Where the parts of the workspace begin, in bytes.
struct Workspace {
  std::int64_t
      tiles;  // int4 [tile_limit + 1]: {expert or -1 for the shared one, first, count, 0}; the last one's `first`: how many
  std::int64_t pairs;  // int32 [tokens * topk]: by expert
  std::int64_t act;    // [tokens * topk, intermediate], then [tokens, shared intermediate]; as pairs
  std::int64_t parts;  // [tokens * topk, hidden], by pair, then [tokens, hidden]; before `down`: x [tokens, hidden]
  std::int64_t bytes;
  int tile_limit;
};

constexpr std::int64_t up16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

constexpr Workspace workspace_of(std::int64_t tokens, std::int64_t topk, std::int64_t experts, std::int64_t hidden,
                                 std::int64_t intermediate, std::int64_t shared_intermediate) {
  std::int64_t const pairs = tokens * topk, most = experts < pairs ? experts : pairs, tile = tile_tokens(pairs, experts);
  std::int64_t const shared = shared_intermediate > 0 ? tokens : 0;
  Workspace w{};
  w.tile_limit = static_cast<int>((pairs + most * (tile - 1)) / tile + (shared + tile - 1) / tile);
  w.tiles = 0;
  w.pairs = w.tiles + 16 * (w.tile_limit + 1);
  w.act = w.pairs + up16(4 * pairs);
  w.parts = w.act + up16(2 * (pairs * intermediate + tokens * shared_intermediate));
  w.bytes = w.parts + 2 * hidden * (pairs + shared);
  return w;
}

constexpr std::int64_t workspace_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t experts, std::int64_t hidden,
                                       std::int64_t intermediate, std::int64_t shared_intermediate) {
  return workspace_of(tokens, topk, experts, hidden, intermediate, shared_intermediate).bytes;
}

// The four launches of one call, on one stream.
cudaError_t launch(Arguments const& arguments, Number number, bool swizzled, cudaStream_t stream);

}  // namespace gb10::moe_grouped
