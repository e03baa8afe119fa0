// The second launch of moe_decode: out[token, r] of the rows of act that the first one left in the workspace (moe_decode.h).
//
// A block owns 16 rows of the output, and goes to other 16 rows when it is done; its warps take turns at the parts (entry, 256 k),
// each adding to sums of its own [token][row], which are added in the order of the warps. The activations of a part travel with it
// in the ring.
#pragma once

#include "entries.cuh"
#include "ring.cuh"

namespace gb10::moe_decode {

inline constexpr int kDownThreads = 512;  // at most
inline constexpr int kDownDepth = 2;      // parts that a warp keeps in flight

inline constexpr int kStageStride = w4a16::token_stride(w4a16::kTileK);  // of one token of one part, in numbers

struct DownPlan {
  int values;               // of act
  int tiles, shared_tiles;  // of k, of an expert
  int limit;                // of entries
  int columns_shift;        // log2 of the most tokens of an entry
  bool bfloat16;
};

// Activations of a part beside it in the ring: [columns] in f16, float inverse[4 * columns], uint8 exponents[columns][32].
__host__ __device__ constexpr int stage_bytes(int columns) { return columns * (2 * kStageStride + w4a16::kTileK / 8 + 16); }
__host__ __device__ constexpr int down_slot_bytes(int columns) { return static_cast<int>(sizeof(Slot)) + stage_bytes(columns); }

inline int down_limit(Sizes const& s, int columns) { return entry_limit(s.pairs, s.tokens, columns, s.k_tiles, s.shared_k_tiles); }

inline int down_bytes(Arguments const& a, Sizes const& s, int warps, int columns) {
  return warps * (kDownDepth * down_slot_bytes(columns) + 2 * s.tokens * w4a16::kTileRows * 4) +
         lists_bytes(down_limit(s, columns), s.pairs, s.tokens, a.experts);
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

// Shared memory: ring[warps][kDownDepth] of a Slot and its activations; float partial[2][warps][tokens][16]; Lists.
template <bool kSwizzled>
__global__ void __launch_bounds__(kDownThreads, 1)
    down(__grid_constant__ Arguments const a, __grid_constant__ DownPlan const plan) {
  unsigned char* const shared = ptx::dynamic_shared();
  int const thread = threadIdx.x, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3, warps = blockDim.x / 32;
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  int const pairs = a.tokens * a.topk, sums = a.tokens * w4a16::kTileRows;
  int const columns = 1 << plan.columns_shift, slot_bytes = down_slot_bytes(columns);
  unsigned char* const ring = shared + warp * kDownDepth * slot_bytes;
  float* const partials = reinterpret_cast<float*>(shared + warps * kDownDepth * slot_bytes);
  Lists const l = lists_at(partials + 2 * warps * sums, plan.limit, pairs, a.experts);
  int const row_tiles = a.w2.rows / w4a16::kTileRows;

  clear_lists(a, l, plan.limit, thread, blockDim.x);
  if (plan.shared_tiles > 0 && thread < a.tokens) {
    float multiplier = 1.0f;
    if (a.shared_multiplier && !a.multiplier_as_x) {
      multiplier = ptx::load_relaxed(static_cast<float const*>(a.shared_multiplier) + thread);
    }
    if (a.shared_multiplier && a.multiplier_as_x) {
      std::uint16_t const bits = ptx::load_relaxed(static_cast<std::uint16_t const*>(a.shared_multiplier) + thread);
      multiplier = plan.bfloat16 ? __uint_as_float(static_cast<std::uint32_t>(bits) << 16) : __half2float(__ushort_as_half(bits));
    }
    l.weight[pairs + thread] = multiplier;
  }
  __syncthreads();
  Side const side{a.w2, a.shared_w2, plan.tiles, plan.shared_tiles, 0, w4a16::kTileK, 8, false, 0, plan.columns_shift};
  int const entries = group_pairs<kSwizzled, true>(a, side, l, thread, blockDim.x);
  ptx::end_copies();

  // Without any entry the sums are zeros.
  if (entries == 0) {
    ptx::wait_for_copies<0>();
    ptx::wait_for_previous();
    ptx::release_next();
#pragma unroll 1
    for (int row_tile = blockIdx.x; row_tile < row_tiles; row_tile += gridDim.x) {
#pragma unroll 1
      for (int i = thread; i < sums; i += blockDim.x) {
        static_cast<std::uint16_t*>(a.out)[static_cast<std::int64_t>(i / 16) * a.w2.rows + row_tile * 16 + i % 16] = 0;
      }
    }
    return;
  }
  // Warps without a part of a tile of rows leave as soon as the globals that they copied are there.
  int const busy = min(warps, entries * plan.tiles);
  if (warp >= busy) {
    ptx::wait_for_copies<0>();
    ptx::barrier_arrive(2, blockDim.x);
    return;
  }

  int const own_row = lane >> 3, own_piece = lane & 7, to = w4a16::code_target(lane);
  int const step_entry = busy / plan.tiles, step_tile = busy % plan.tiles;
  int const first_entry = warp / plan.tiles, first_tile = warp % plan.tiles;
  int row_tile = blockIdx.x, entry = first_entry, tile = first_tile;
  // Starts the copies of the next part's weights.
  auto const ask = [&](Slot& slot) {
    if (row_tile >= row_tiles) {
      if (lane == 0) slot.note = {0, row_tile, 0, kStop};
      return;
    }
    Entry const& e = l.entries[entry];
    bool const exists = tile < e.tiles;
    if (exists) {
      int const row_bytes = e.row_bytes, row = row_tile * w4a16::kTileRows;
      int const last = e.left / w4a16::kThreadK - 1;
      unsigned const offset = (row + own_row) * row_bytes + min(tile * 8 + own_piece, 2 * last + 1) * 16;
      copy_codes(slot, to, e.codes + offset, 4 * row_bytes, 8 * row_bytes);
      int const chunk = min(tile * 4 + t, last);
      unsigned first = (row + g) * (row_bytes >> 3) + chunk * 4, second = first + row_bytes;
      if constexpr (kSwizzled) {
        first = w4a16::scale_offset<true>(row + g, chunk * 4, row_bytes / 8);
        second = w4a16::scale_offset<true>(row + g + 8, chunk * 4, row_bytes / 8);
      }
      ptx::copy4(&slot.scales[lane].x, e.scales + first);
      ptx::copy4(&slot.scales[lane].y, e.scales + second);
    }
    if (lane == 0) slot.note = {entry, row_tile, tile, exists ? kTile : 0};
    entry += step_entry;
    tile += step_tile;
    if (tile >= plan.tiles) {
      tile -= plan.tiles;
      ++entry;
    }
    if (entry >= entries) {
      row_tile += gridDim.x;
      entry = first_entry;
      tile = first_tile;
    }
  };

  __half const* const act = static_cast<__half const*>(a.act);
  std::uint8_t const* const exponents = reinterpret_cast<std::uint8_t const*>(act + plan.values);
  int const to_lane = lane / 8 * w4a16::chunk_stride() + lane % 8 * 8;
  int const inverse_at = columns * 2 * kStageStride, exponents_at = inverse_at + columns * 16;
  // Starts the copies of the activations of the part in a slot, as they are.
  auto const ask_act = [&](Slot& slot) {
    Note const part = slot.note;
    if (!(part.flags & kTile)) return;
    unsigned char* const stage = reinterpret_cast<unsigned char*>(&slot) + sizeof(Slot);
    Entry const& e = l.entries[part.entry];
    int const count = e.columns, width = e.width;
    int const begin = part.part * w4a16::kTileK, left = e.left - begin, act0 = e.act0 + begin;
    bool const valid = lane * 8 < left, exponents_valid = lane * 32 < left && lane < 8;
    std::uint32_t const* const items = l.items + part.entry * kColumns;
#pragma unroll 1
    for (int column = 0; column < count; ++column) {
      int const row = act0 + row_of(items[column]) * width;
      ptx::copy16(stage + 2 * (column * kStageStride + to_lane), act + (row + (valid ? lane * 8 : 0)), valid);
      if (lane < 8) {
        ptx::copy4(stage + exponents_at + column * 32 + lane * 4, exponents + (row / 8 + (exponents_valid ? lane * 4 : 0)),
                   exponents_valid);
      }
    }
  };
  auto const slot_at = [&](int i) -> Slot& { return *reinterpret_cast<Slot*>(ring + i * slot_bytes); };

#pragma unroll 1
  for (int d = 0; d < kDownDepth; ++d) ask(slot_at(d));
#pragma unroll 1
  for (int i = lane; i < sums; i += 32) partials[warp * sums + i] = 0.0f;
  __syncwarp();
  ptx::wait_for_previous();
  ptx::release_next();
#pragma unroll 1
  for (int d = 0; d < kDownDepth; ++d) {
    ask_act(slot_at(d));
    ptx::end_copies();
  }
  ptx::wait_for_copies<kDownDepth>();  // the globals of the entries
  ptx::barrier_wait(2, blockDim.x);

  int partial_set = warp * sums;  // the set of partial sums in use
  int at = 0, current = blockIdx.x;
#pragma unroll 1
  while (true) {
    ptx::wait_for_copies<kDownDepth - 1>();
    __syncwarp();
    Slot& slot = slot_at(at);
    unsigned char* const stage = reinterpret_cast<unsigned char*>(&slot) + sizeof(Slot);
    at = at + 1 == kDownDepth ? 0 : at + 1;
    Note const now = slot.note;
    if (now.tile != current) {
      // The last part of these rows is done. A set is filled again two tiles of rows later, past the next barrier, which all
      // warps reach when they have read it.
      ptx::barrier_wait(1, 32 * busy);
      float const* const from = partials + partial_set - warp * sums;
#pragma unroll 1
      for (int i = thread; i < sums; i += 32 * busy) {
        float sum = from[i];
#pragma unroll 4
        for (int w = 1; w < busy; ++w) sum += from[w * sums + i];
        std::int64_t const place =
            static_cast<std::int64_t>(i / w4a16::kTileRows) * a.w2.rows + current * w4a16::kTileRows + i % w4a16::kTileRows;
        if (plan.bfloat16) static_cast<__nv_bfloat16*>(a.out)[place] = __float2bfloat16_rn(sum);
        else static_cast<__half*>(a.out)[place] = __float2half_rn(sum);
      }
      if (now.flags & kStop) break;
      current = now.tile;
      partial_set = 2 * warp * sums + warps * sums - partial_set;
#pragma unroll 1
      for (int i = lane; i < sums; i += 32) partials[partial_set + i] = 0.0f;
      __syncwarp();
    }
    if (now.flags & kTile) {
      Entry const& e = l.entries[now.entry];
      int const count = e.columns;
      // All groups of 8 channels of a token to one power of two.
#pragma unroll 1
      for (int column = 0; column < count; ++column) {
        uint4& v = *reinterpret_cast<uint4*>(stage + 2 * (column * kStageStride + to_lane));
        int const own = stage[exponents_at + column * 32 + lane], largest = __reduce_max_sync(~0u, own);
        __half const half = __float2half_rn(__uint_as_float(static_cast<std::uint32_t>(max(127 + own - largest, 0)) << 23));
        std::uint32_t const factor = twice(__half_as_ushort(half));
        v = {mul2<__half>(v.x, factor), mul2<__half>(v.y, factor), mul2<__half>(v.z, factor), mul2<__half>(v.w, factor)};
        if (lane == 0) *reinterpret_cast<float*>(stage + inverse_at + column * 4) = w4a16::power_back(max(largest, 16));
      }
      __syncwarp();
      w4a16::Tile held;
      w4a16::read(held, slot, lane);
      float c[4] = {};
      w4a16::multiply(c, held,
                      reinterpret_cast<__half const*>(stage) + (g < count ? g : 0) * kStageStride + t * w4a16::chunk_stride());
      float const global = w4a16::kUnscale * e.globals[0];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        int const column = 2 * t + j;
        if (column < count) {
          std::uint32_t const item = l.items[now.entry * kColumns + column];
          float const back = *reinterpret_cast<float const*>(stage + inverse_at + column * 4);
          float const factor = l.weight[row_of(item)] * global;
          float* const to = partials + (partial_set + g + token_of(item) * w4a16::kTileRows);
          to[0] += c[j] * back * factor;
          to[8] += c[2 + j] * back * factor;
        }
      }
    }
    __syncwarp();
    ask(slot);
    __syncwarp();
    ask_act(slot);
    ptx::end_copies();
  }
}

}  // namespace gb10::moe_decode
