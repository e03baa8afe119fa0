// The host's side of sparse24.cuh: the packed form, and what a launch needs.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gb10/types.h"

namespace gb10::sparse24 {

inline constexpr int kMaxColumns = 16 * 1024;  // one token's activations must fit into any GPU's shared memory
inline constexpr int kMaxRows = 1 << 29;
inline constexpr int kColumnUnit = 16;  // K is a multiple of this
inline constexpr int kTileRows = 16;
inline constexpr int kTileColumns = 256;

// Bytes of a tile of 16 rows x 256 k: 13 / 32 byte a weight, 52 / 72 of dense NVFP4.
inline constexpr int kTileValueBytes = 1024;
inline constexpr int kTilePositionBytes = 384;
inline constexpr int kTileScaleBytes = 256;

// A packed matrix, or a stack of them with `matrices` in front of each shape.
struct Packed {
  std::uint8_t const* values;     // [row tiles, column tiles, 1024], 16-byte aligned
  std::uint8_t const* positions;  // [row tiles, column tiles, 384], 8-byte aligned
  std::uint8_t const* scales;     // [row tiles, column tiles, 256], 8-byte aligned
};

struct Arguments {
  void const* x;  // [tokens, columns], 16-byte aligned
  Packed weight;
  float const* global_scale;  // one number
  void const* bias;           // [rows] or null
  void* out;                  // [tokens, rows]
  int tokens;
  int rows;
  int columns;
};

// Launches on `stream` of the current device; gives the first CUDA error.
cudaError_t launch(Arguments const& arguments, Number number, cudaStream_t stream);

}  // namespace gb10::sparse24
