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
};

struct Plan {
  int tokens;  // of one launch; more tokens take more launches
  int slices;  // warps that share a tile of rows
  int teams;   // groups of `slices` warps in a block
  int blocks;
  std::size_t shared_bytes;
};

// Tiles of 256 k that cover K, the last one perhaps in part; tiles of 16 rows likewise.
constexpr int k_tiles(int k) { return divide_up(k, 256); }
constexpr int row_tiles(int rows) { return divide_up(rows, 16); }

// Activations, their powers of two, then `slices` sets of partial sums: one float4 a lane and group of 8 tokens.
constexpr std::size_t shared_bytes(int tokens, std::size_t token_bytes, int slices, int teams) {
  std::size_t const sums = slices == 1 ? 0 : std::size_t(slices) * slices * teams * (tokens > 8 ? 2 : 1) * 32 * 16;
  return std::size_t(slices) * teams * kDepth * kTileBytes + tokens * token_bytes + std::size_t{4} * kMaxTokens * slices + sums;
}

// The rule: as many tokens in a launch and as many warps in a block as fit shared memory, tokens first. Then, with two or more
// tiles of rows for every warp, slices of about 8 tiles of k each (measured: docs/negative-results.md); else the cut whose last
// warp is done first. A warp is done after its steps: one for each tile of 16 rows x 256 k, and one for a meeting of its team.
// token_bytes: what one token takes in shared memory.
inline Plan choose(int tokens, int rows, int k, std::size_t token_bytes, Device const& device) {
  Plan best{};
  int best_steps = 0;
  int const tiles = k_tiles(k), todo = row_tiles(rows);
  for (int launches = 1; best_steps == 0 && launches <= tokens; ++launches) {
    int const part = divide_up(tokens, launches);
    for (int warps = kBlockWarps; best_steps == 0 && warps >= 1; warps /= 2) {
      for (int slices = 1; slices <= std::min(warps, tiles); slices *= 2) {
        int const most_teams = warps / slices;
        std::size_t const bytes = shared_bytes(part, token_bytes, slices, most_teams);
        int const resident = device.sms * blocks_per_sm(device, bytes, kBlocksPerSm * kBlockWarps / warps);
        if (resident == 0) continue;
        bool const many = todo >= 2 * resident * warps;
        int const steps = divide_up(todo, resident * most_teams) * (divide_up(tiles, slices) + (slices > 1));
        // With few tiles: smaller blocks, when large ones would leave SMs idle for more than a third of the time.
        int teams = most_teams;
        while (teams > divide_up(todo, resident) &&
               10LL * divide_up(divide_up(todo, teams), device.sms) * teams * device.sms > 14LL * todo)
          --teams;
        if (best_steps == 0 || (many ? 8 * slices <= tiles : steps <= best_steps)) {
          best_steps = steps;
          best = {part, slices, teams, std::min(divide_up(todo, teams), resident), shared_bytes(part, token_bytes, slices, teams)};
        }
      }
    }
  }
  return best;
}

}  // namespace gb10::nvfp4_gemv
