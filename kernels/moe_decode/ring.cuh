// The parts of a weight (16 rows x 256 k) that a warp of moe_decode keeps in flight: a ring in shared memory, filled by
// asynchronous copies across tiles, entries and rows.
#pragma once

#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/w4a16.cuh"

namespace gb10::moe_decode {

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
  int row, piece;  // its rows of codes are row, row + 4, and the same 8 further down; its 16 bytes in each
  int to;
};
__device__ __forceinline__ Lane lane_of(int lane) {
  int const row = lane >> 3, piece = lane & 7;
  return {row, piece, row * 128 + (piece ^ (row & 1)) * 16};
}

// Starts the copies of a part. codes: of the lane's first row and piece; four_rows: from its row to the fourth after it.
__device__ __forceinline__ void copy_codes(Slot& slot, int to, std::uint8_t const* codes, int four_rows, int step) {
  unsigned char* const at = slot.codes + to;
  ptx::copy16(at, codes);
  ptx::copy16(at + 512, codes + four_rows);
  ptx::copy16(at + 1024, codes + step);
  ptx::copy16(at + 1536, codes + step + four_rows);
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

}  // namespace gb10::moe_decode
