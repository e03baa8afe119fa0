// A few vectors times a weight, tile of rows by tile of rows: a loop that kernels share.
//
// A team is kSlices warps that share tiles of 16 rows; a block is kTeams teams, and all teams of the grid go through the tiles in
// one sequence, so that the grid reads one window of the weight at a time. The warps of a team split the units of a tile (pieces
// of K) into ranges. A warp reads a batch of kBatchUnits units at a time. Two batches are in its registers: while one is used
// the other is on its way, that of the next tile too. At the end of a tile the warps' sums meet in shared memory and one of them
// adds them in the order of the slices, so the order of all sums is fixed by the shape and the number of slices.
//
// Sums are those of m16n8k16 (mma.cuh): thread (g = lane / 4, t = lane % 4) has rows g, g + 8 and tokens 2t, 2t + 1 of each
// group of 8 tokens.
#pragma once

#include "gb10/ptx.cuh"

namespace gb10::teams {

inline constexpr int kTileRows = 16;

// With turns the warps of a team add up in turn, and nobody else waits; that takes a set of sums for each slice.
template <int kSums, int kSlices, int kTeams, bool kTurns>
__host__ __device__ constexpr int sum_bytes() {
  return kSlices == 1 ? 0 : kTeams * kSlices * (kTurns ? kSlices : 1) * kSums * 512;
}

// Weights is a kernel's own part; a place is a tile and a unit.
//   Batch, kBatchUnits              what a thread holds of kBatchUnits units of a tile
//   load(batch, tile, unit, end)    starts the loads of units unit .. min(unit + kBatchUnits, end) - 1; may be none
//   multiply(sum, batch, unit, end) adds the same units' products
//   activations_ready()             called once by all threads: waits for the kernel ahead, brings x where multiply finds it
//   read_rows(tile)                 reads ahead what store() will want; tile may not exist
//   store(tile, sum)                writes the results of a tile; called by one warp
template <int kSums, int kSlices, int kTeams, bool kTurns, typename Weights>
class Loop {
 public:
  static constexpr int kWarps = kSlices * kTeams;
  static_assert(!kTurns || kWarps < 16, "a team needs a barrier for each of its warps");

  __device__ __forceinline__ Loop(Weights& weights, void* sums, int units, int tiles)
      : weights_(weights), units_(units), tiles_(tiles) {
    int const warp = threadIdx.x / 32;
    slice_ = warp % kSlices;
    team_ = warp / kSlices;
    sums_ = static_cast<float4*>(sums) + team_ * (kSlices * kSums * 32) + threadIdx.x % 32;
    unit_begin_ = units * slice_ / kSlices;
    unit_end_ = units * (slice_ + 1) / kSlices;
  }

  __device__ __forceinline__ void run() {
    Place now{static_cast<int>(blockIdx.x) * kTeams + team_, unit_begin_}, ahead = now;
    typename Weights::Batch even, odd;
    load(even, ahead);
    advance(ahead);
    load(odd, ahead);
    if (turn_ == slice_) weights_.read_rows(now.tile);
    weights_.activations_ready();
    while (now.tile < tiles_) {
      step(even, now, ahead);
      if (now.tile >= tiles_) break;
      step(odd, now, ahead);
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
      place.tile += gridDim.x * kTeams;
    }
  }

  __device__ __forceinline__ void load(typename Weights::Batch& batch, Place place) const {
    if (place.tile < tiles_) weights_.load(batch, place.tile, place.unit, unit_end_);
  }

  // Uses up `current`, which holds `now`, and loads the batch after `ahead` into it.
  __device__ __forceinline__ void step(typename Weights::Batch& current, Place& now, Place& ahead) {
    weights_.multiply(sum_, current, now.unit, unit_end_);
    advance(ahead);
    load(current, ahead);
    int const tile = now.tile;
    advance(now);
    if (now.tile == tile) return;
    finish(tile);
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum_[j][i] = 0.0f;
    }
    if (turn_ == slice_) weights_.read_rows(now.tile);
  }

  __device__ __forceinline__ void finish(int tile) {
    if constexpr (kSlices == 1) {
      weights_.store(tile, sum_);
    } else {
      // A set is used again kSlices tiles later. In between each warp has waited for the others once: the set has been read.
      constexpr int kThreads = 32 * kSlices;
      float4* const set = sums_ + (kTurns ? turn_ * (kWarps * kSums * 32) : 0);
#pragma unroll
      for (int j = 0; j < kSums; ++j) set[(slice_ * kSums + j) * 32] = {sum_[j][0], sum_[j][1], sum_[j][2], sum_[j][3]};
      int const barrier = 1 + team_ * (kTurns ? kSlices : 1) + (kTurns ? turn_ : 0);
      // With turns only the warp that adds waits. Without, all warps meet at the same two places.
      if (!kTurns || turn_ == slice_) {
        ptx::barrier_wait(barrier, kThreads);
      } else {
        ptx::barrier_arrive(barrier, kThreads);
      }
      if (turn_ == slice_) {
#pragma unroll
        for (int j = 0; j < kSums; ++j) {
          float4 total = set[j * 32];
#pragma unroll
          for (int slice = 1; slice < kSlices; ++slice) {
            float4 const part = set[(slice * kSums + j) * 32];
            total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
          }
          sum_[j][0] = total.x, sum_[j][1] = total.y, sum_[j][2] = total.z, sum_[j][3] = total.w;
        }
      }
      if constexpr (!kTurns) ptx::barrier_wait(barrier, kThreads);
      if (turn_ == slice_) weights_.store(tile, sum_);
      if constexpr (kTurns) turn_ = turn_ + 1 == kSlices ? 0 : turn_ + 1;
    }
  }

  Weights& weights_;
  float4* sums_;
  int units_, tiles_;
  int slice_, team_;
  int unit_begin_, unit_end_;
  int turn_ = 0;  // the slice that adds up next
  float sum_[kSums][4] = {};
};

}  // namespace gb10::teams
