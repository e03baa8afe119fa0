// A few vectors times a weight, tile of rows by tile of rows, all warps of a block at one tile.
//
// A block of kWarps warps takes tiles of 16 rows, one after another, gridDim.x apart; its warps split K into ranges of units.
// A warp reads a batch of kBatchUnits units at a time. Two batches are in its registers: while one is used the other is on its
// way, that of the next tile too. At the end of a tile the warps' sums meet in shared memory and are added in the order of the
// warps, so the order of all sums is fixed by the shape and the number of warps.
//
// Sums are those of m16n8k16 (mma.cuh): thread (g = lane / 4, t = lane % 4) has rows g, g + 8 and tokens 2t, 2t + 1 of each
// group of 8 tokens.
#pragma once

#include <cstddef>

namespace gb10::split_k {

inline constexpr int kTileRows = 16;
inline constexpr int kSmWarps = 16;    // warps of an SM: 128 registers a thread
inline constexpr int kSumStride = 20;  // a token's 16 sums in shared memory, padded against bank conflicts

// Floats in shared memory: the sums of two tiles. Two tiles have different places, so one barrier a tile is enough.
template <int kTokenTiles, int kWarps>
__host__ __device__ constexpr int sum_floats() {
  return 2 * kWarps * 8 * kTokenTiles * kSumStride;
}

// Weights is a kernel's own part:
//   Batch, kBatchUnits              what a thread holds of kBatchUnits units of a tile
//   load(batch, tile, unit, end)    starts the loads of units unit .. min(unit + kBatchUnits, end) - 1; may be none
//   multiply(sum, batch, unit, end) adds the same units' products
//   activations_ready()             called once by all threads: waits for the kernel ahead, brings x where multiply finds it
//   read_row(row)                   reads ahead what belongs to the row that this thread will write; rows may not exist
//   result(total)                   what is written for a sum of that row
template <typename T, int kTokenTiles, int kWarps, typename Weights>
class Loop {
 public:
  __device__ __forceinline__ Loop(Weights& weights, float* sums, T* out, int units, int tokens, int rows)
      : weights_(weights), sums_(sums), out_(out), tokens_(tokens), rows_(rows), warp_(threadIdx.x / 32) {
    unit_begin_ = units * warp_ / kWarps;
    unit_end_ = units * (warp_ + 1) / kWarps;
    tiles_ = (rows + kTileRows - 1) / kTileRows;
  }

  // Needs gridDim.x <= number of tiles.
  __device__ __forceinline__ void run() {
    Place now{static_cast<int>(blockIdx.x), unit_begin_}, ahead = now;
    typename Weights::Batch even, odd;
    load(even, ahead);
    advance(ahead);
    load(odd, ahead);
    read_row(now.tile);
    weights_.activations_ready();
    while (true) {
      if (step(even, now, ahead)) return;
      if (step(odd, now, ahead)) return;
    }
  }

 private:
  struct Place {
    int tile;
    int unit;
  };

  // To the next batch. A warp whose range is empty has one empty batch a tile, so that it takes part in the sums.
  __device__ __forceinline__ void advance(Place& place) const {
    place.unit += Weights::kBatchUnits;
    if (place.unit >= unit_end_) {
      place.unit = unit_begin_;
      place.tile += gridDim.x;
    }
  }

  __device__ __forceinline__ void load(typename Weights::Batch& batch, Place place) const {
    if (place.tile < tiles_) weights_.load(batch, place.tile, place.unit, unit_end_);
  }

  // Uses up `current`, which holds `now`, and loads the batch after `ahead` into it. True after the last tile.
  __device__ __forceinline__ bool step(typename Weights::Batch& current, Place& now, Place& ahead) {
    weights_.multiply(sum_, current, now.unit, unit_end_);
    advance(ahead);
    load(current, ahead);
    int const tile = now.tile;
    advance(now);
    if (now.tile == tile) return false;
    finish(tile);
    read_row(now.tile);
    return now.tile >= tiles_;
  }

  __device__ __forceinline__ void read_row(int tile) const { weights_.read_row(tile * kTileRows + threadIdx.x % kTileRows); }

  // Adds the warps' sums and writes them: a thread has one row and every (2 * kWarps)-th token.
  __device__ __forceinline__ void finish(int tile) {
    constexpr int kWarpSums = 8 * kTokenTiles * kSumStride;
    int const g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float* const sums = sums_ + parity_ * kWarps * kWarpSums;
    parity_ ^= 1;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[warp_ * kWarpSums + (8 * j + 2 * t + i % 2) * kSumStride + g + i / 2 * 8] = sum_[j][i];
        sum_[j][i] = 0.0f;
      }
    }
    __syncthreads();
    int const in_tile = threadIdx.x % kTileRows, row = tile * kTileRows + in_tile;
    if (row >= rows_) return;
    for (int token = threadIdx.x / kTileRows; token < tokens_; token += 2 * kWarps) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += sums[w * kWarpSums + token * kSumStride + in_tile];
      out_[static_cast<std::size_t>(token) * rows_ + row] = static_cast<T>(weights_.result(total));
    }
  }

  Weights& weights_;
  float* sums_;
  T* out_;
  int tokens_, rows_, warp_;
  int unit_begin_, unit_end_, tiles_;
  int parity_ = 0;
  float sum_[kTokenTiles][4] = {};
};

}  // namespace gb10::split_k
