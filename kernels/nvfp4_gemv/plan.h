// What the operator asks of the kernel, and how the work is cut for a GPU. Host code.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gb10/device.h"
#include "gb10/types.h"

namespace gb10::nvfp4_gemv {

inline constexpr int kUnitK = 64;    // K is a multiple of this
inline constexpr int kMaxK = 32768;  // one token and one warp fit the 99 KB of shared memory that a block has on 8.6, 8.9 and 12.x
inline constexpr int kBlockWarps = 8;   // at most
inline constexpr int kBlocksPerSm = 2;  // full blocks an SM holds by their registers
inline constexpr int kDepth = 3;        // tiles in flight a warp
inline constexpr int kTileBytes = 16 * (256 / 2 + 256 / 16);

// Pointers on the device; nvfp4_gemv.cuh says what they point to.
struct Problem {
  void const* x;
  std::uint8_t const* weight;
  std::uint8_t const* scales;
  float const* global_scale;
  void const* bias;
  void* out;
  int tokens;
  int rows;  // N
  int k;
  int sets;  // see Plan
};

struct Plan {
  int tokens;  // of one launch; more tokens take more launches
  int slices;  // warps that share a tile of rows
  int teams;   // groups of `slices` warps in a block
  int blocks;
  int sets;  // of partial sums: a tile of rows takes the next one, and one is free again after `slices` tiles
  std::size_t shared_bytes;
};

// Tiles of 256 k that cover K, the last one perhaps in part; tiles of 16 rows likewise.
constexpr int k_tiles(int k) { return divide_up(k, 256); }
constexpr int row_tiles(int rows) { return divide_up(rows, 16); }

// Activations, their powers of two, then the sets of partial sums: one float4 a lane and group of 8 tokens.
constexpr std::size_t shared_bytes(int tokens, std::size_t token_bytes, int slices, int teams, int sets) {
  std::size_t const sums = slices == 1 ? 0 : std::size_t(sets) * slices * teams * (tokens > 8 ? 2 : 1) * 32 * 16;
  return std::size_t(slices) * teams * kDepth * kTileBytes + tokens * token_bytes + std::size_t{4} * kMaxTokens * slices + sums;
}

// A cut into teams of `slices` warps: as many blocks as the GPU holds at once, and as many sets as a team has tiles of rows. No
// blocks where one does not fit.
inline Plan cut(int tokens, int rows, std::size_t token_bytes, int slices, int teams, Device const& device) {
  Plan plan{tokens, slices, teams, 0, 0, 0};
  int const todo = divide_up(row_tiles(rows), teams);
  // More sets can leave place for fewer blocks, which want more sets.
  for (int wanted = 1; wanted > plan.sets; wanted = std::min(slices, divide_up(todo, plan.blocks))) {
    plan.sets = wanted;
    plan.shared_bytes = shared_bytes(tokens, token_bytes, slices, teams, plan.sets);
    int const fit = blocks_per_sm(device, plan.shared_bytes, kBlocksPerSm * kBlockWarps / (slices * teams));
    plan.blocks = std::min(todo, device.sms * fit);
    if (plan.blocks == 0) break;
  }
  return plan;
}

// About how many cycles a cut takes after the activations are there: the instructions of the fullest SM, or the tiles of one warp in
// a row; and before them, the way of the activations into shared memory.
inline std::int64_t cycles(Plan const& plan, int rows, int k, int sms) {
  int const tiles = k_tiles(k), todo = row_tiles(rows), step = plan.blocks * plan.teams;
  std::int64_t load = 0;  // tiles of rows of the SM that has block 0
  for (int block = 0; block < plan.blocks; block += sms) {
    for (int first = block * plan.teams; first < todo; first += step) load += std::min(plan.teams, todo - first);
  }
  bool const meets = plan.slices > 1, many = plan.tokens > 8;
  std::int64_t const instructions = load * ((many ? 115 : 95) * tiles + (meets ? 15 * plan.slices : 0));
  std::int64_t const in_a_row =
      divide_up(todo, step) * std::int64_t{(many ? 800 : 700) * divide_up(tiles, plan.slices) + 250 * meets};
  return std::max(instructions, in_a_row) + 100 * meets + std::int64_t{divide_up(plan.blocks, sms)} * plan.tokens * k / 16;
}

// Whether a warp decodes its first tile ahead of the activations: not where it takes the tokens one after the other then.
constexpr bool decodes_ahead(int tokens, Plan const& plan) { return tokens <= 2 * plan.teams && tokens <= 8; }

// The rule: as many tokens in a launch as fit shared memory. Then, with two or more tiles of rows for every warp of blocks of
// kBlockWarps, or as many as fit, slices of about 8 tiles of k each (measured: docs/negative-results.md); else the cut of the fewest
// cycles. token_bytes: what one token takes in shared memory.
inline Plan choose(int tokens, int rows, int k, std::size_t token_bytes, Device const& device) {
  int const tiles = k_tiles(k), todo = row_tiles(rows);
  for (int launches = 1; launches <= tokens; ++launches) {
    int const part = divide_up(tokens, launches);
    Plan streaming{}, best{};
    for (int warps = kBlockWarps; warps >= 1 && streaming.blocks == 0; --warps) {
      for (int slices = 1; slices <= std::min(warps, tiles) && 8 * slices <= std::max(tiles, 8); slices *= 2) {
        Plan const plan = cut(part, rows, token_bytes, slices, warps / slices, device);
        if (plan.blocks != 0) streaming = plan;
      }
    }
    if (streaming.blocks == 0) continue;
    if (todo >= 2 * streaming.blocks * streaming.slices * streaming.teams) return streaming;
    for (int slices = 1; slices <= std::min(kBlockWarps, tiles); slices *= 2) {
      for (int teams = 1; teams * slices <= kBlockWarps; ++teams) {
        Plan const plan = cut(part, rows, token_bytes, slices, teams, device);
        if (plan.blocks == 0) continue;
        if (best.blocks == 0 || cycles(plan, rows, k, device.sms) < cycles(best, rows, k, device.sms)) best = plan;
      }
    }
    return best;
  }
  return {};
}

}  // namespace gb10::nvfp4_gemv
