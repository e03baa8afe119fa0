// The parts of a weight (16 rows x 256 k) that a warp of moe_decode keeps in flight: a ring in shared memory, filled by
// asynchronous copies across tiles, entries and rows.
#pragma once

#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/w4a16.cuh"

namespace gb10::moe_decode {

struct alignas(16) Note {
  int entry, tile, part, flags;
};
inline constexpr int kTile = 1, kPieceEnd = 2, kWhole = 4, kStop = 8;  // flags

// One place of a warp's ring, and what the part is.
struct Slot : w4a16::Place {
  Note note;
};

// Starts the copies of a part's codes; they go to `to`, a lane's code_target(). codes: of the lane's first row and piece; four_rows:
// from its row to the fourth after it; step: to the eighth row of the tile.
__device__ __forceinline__ void copy_codes(Slot& slot, int to, std::uint8_t const* codes, int four_rows, int step) {
  unsigned char* const at = slot.codes + to;
  ptx::copy16(at, codes);
  ptx::copy16(at + 512, codes + four_rows);
  ptx::copy16(at + 1024, codes + step);
  ptx::copy16(at + 1536, codes + step + four_rows);
}

}  // namespace gb10::moe_decode
