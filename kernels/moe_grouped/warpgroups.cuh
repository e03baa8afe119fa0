// The two launches of moe_grouped that multiply, with the matrix instruction of warpgroups (9.0 alone): bf16, linear scales, a gated
// swish.
//
// A block stays, and takes one item after the other: 256 rows of a weight (gate_up: of 128 channels gate and up) and a tile of at most
// 192 tokens. Three warpgroups: one copies into a ring in shared memory, 64 k of codes, block scales and activations a step; each of the
// other two multiplies 128 rows as two operands of 64. Weights are decoded into the registers that the instruction reads; while it
// multiplies one operand the next one is decoded. Each weight is decoded once for a tile.
//
// k in a step: thread t of four has the 16 k of block scale t, as two words of 8 codes. The instruction takes them in another order, in
// which x and act lie in memory (in_windows).
//
// Rows: each thread's sums are those of neighbouring rows of the result, so that its warp writes whole sectors.
#pragma once

#include <cmath>
#include <cstdint>

#include "gb10/mma.cuh"
#include "gb10/moe.cuh"
#include "gb10/ptx.cuh"
#include "group.cuh"
#include "moe_grouped.h"
#include "operands.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !GB10_HW_WARPGROUPS
#error "moe_grouped on 9.0 multiplies with the instruction of warpgroups: build for sm_90a"
#endif

namespace gb10::moe_grouped {

inline constexpr int kGroup = 128;  // threads of a warpgroup
inline constexpr int kItemThreads = 3 * kGroup;
inline constexpr int kItemRows = 256;
inline constexpr int kXPlaces = 4;           // of the ring of activations, 64 k each
inline constexpr int kWPlaces = 3;           // of the ring of weights, 256 k each: whole lines of codes
inline constexpr int kWindows = 4;           // of 64 k in a place of weights
inline constexpr int kItems = kXPlaces + 2;  // that are known: one that is written, those of the ring, one that is made

// A row of x is 128 bytes, its 16-byte pieces as b_of_swizzled wants them.
struct alignas(1024) XPlace {
  unsigned char x[kWideTile * 128];
};

// A row of codes is 128 bytes, its four windows exchanged so that 16 lanes read from all banks; of scales 16.
struct alignas(128) WPlace {
  unsigned char codes[kItemRows * 128];
  unsigned char scales[kItemRows * 16];
};

// What those that multiply know of an item.
struct Item {
  int steps;  // 0: there are no more items
  int first;  // row or channel of the result
  int tokens;
  int out_rows;
  float global, global_up;   // of the scales
  __nv_bfloat16* out;        // where rows of the result begin
  int targets[kWideTile];    // the tokens' rows of the result
  float factors[kWideTile];  // gate_up: multiply gate and up
};

// Shared memory, from a multiple of 1024 on.
struct Shared {
  XPlace x[kXPlaces];
  WPlace w[kWPlaces];
  std::uint64_t x_full[kXPlaces], x_empty[kXPlaces], w_full[kWPlaces], w_empty[kWPlaces], known[kItems];
  Item items[kItems];
  int next[2];
};
inline constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;

__host__ __device__ constexpr int rows_of_item(bool down) { return down ? kItemRows : kItemRows / 2; }  // of the result

// Where a walk around a ring is.
template <int kPlaces>
struct Walk {
  int place = 0, round = 0;

  __device__ __forceinline__ void next() {
    if (++place == kPlaces) place = 0, round ^= 1;
  }
};

// The weight's row of row `row` of an item, or -1. Rows of a warp come in twos (gate_up: of gate and of up) and fours.
template <bool kDown>
__device__ __forceinline__ int weight_row(Arguments const& a, int rows, int first, int row) {
  int const half = row >> 7, m = (row >> 6) & 1, warp = (row >> 4) & 3, i = (row >> 3) & 1, g = row & 7;
  if constexpr (kDown) {
    int const at = first + half * 128 + warp * 32 + 4 * g + 2 * m + i;
    return at < rows ? at : -1;
  } else {
    int const channels = rows / 2, channel = first + half * 64 + of_window(16 * warp + 2 * g + i);
    if (channel >= channels) return -1;
    if (a.interleaved) return 2 * channel + m;
    // Not `(m == 1) != a.up_first`: nvcc widens a bool as the host's char, signed on x86_64 and unsigned on Arm, so its code differs.
    return channel + (a.up_first ? 1 - m : m) * channels;
  }
}

// What an item multiplies.
struct Multiplied {
  std::uint8_t const* codes;
  std::uint8_t const* scales;
  float const* globals;
  __nv_bfloat16 const* x;  // the rows of the input
  __nv_bfloat16* out;      // and of the result
  int rows, k, global_columns, out_rows;
};

template <bool kDown>
__device__ __forceinline__ Multiplied multiplied(Arguments const& a, Plan const& p, Tile const& tile) {
  bool const shared_expert = tile.expert < 0;
  moe::Matrix const& matrix = shared_expert ? (kDown ? a.shared_w2 : a.shared_w13) : (kDown ? a.w2 : a.w13);
  int const e = max(tile.expert, 0);
  Multiplied m{};
  m.out_rows = kDown ? a.w2.rows : shared_expert ? p.shared_intermediate : a.w2.k;
  m.codes = matrix.codes + static_cast<std::int64_t>(e) * matrix.rows * (matrix.k / 2);
  m.scales = matrix.scales + e * matrix.scale_bytes;
  m.globals = matrix.globals + e * matrix.global_columns;
  m.global_columns = matrix.global_columns;
  m.rows = matrix.rows;
  m.k = matrix.k;
  std::int64_t const shared_act = shared_expert ? static_cast<std::int64_t>(p.pairs) * a.w2.k : 0;
  __nv_bfloat16* const act = at<__nv_bfloat16>(a, p.at.act) + shared_act;
  __nv_bfloat16* const parts =
      at<__nv_bfloat16>(a, p.at.parts) + (shared_expert ? static_cast<std::int64_t>(p.pairs) * a.w2.rows : 0);
  m.x = kDown ? act : at<__nv_bfloat16>(a, p.at.parts);
  m.out = kDown ? parts : act;
  return m;
}

// The warpgroup that copies. Blocks take the items in their order, whoever is free.
template <bool kDown>
__device__ __forceinline__ void copy_items(Arguments const& a, Plan const& p, int row_tiles, Shared& shared) {
  int const thread = threadIdx.x % kGroup, piece = thread % 8, row0 = thread / 8;  // eight threads have a line
  constexpr int kTokens = kWideTile / 16;
  Tile* const tiles = at<Tile>(a, p.at.tiles);
  Tile& counts = tiles[p.at.tile_limit];
  int const items = counts.first * row_tiles;
  Walk<kXPlaces> x_walk;
  Walk<kWPlaces> w_walk;
  Walk<kItems> item_walk;
  // This item and the next one, whose tile is asked for while this one is copied.
  auto const tile_of = [&](int number) { return tiles[number < items ? number / row_tiles : 0]; };
  int number = blockIdx.x, next = number + gridDim.x;
  Tile tile = tile_of(number);
#pragma unroll 1
  for (int turn = 0;; turn ^= 1) {
    int after_next = 0;
    if (thread == 0) after_next = 2 * static_cast<int>(gridDim.x) + atomicAdd(kDown ? &counts.unused : &counts.count, 1);
    Tile const next_tile = tile_of(next);
    bool const there = number < items;
    int const first = number % row_tiles * rows_of_item(kDown);
    Multiplied const m = multiplied<kDown>(a, p, tile);
    int const steps = there && first < m.out_rows ? m.k / kWindow : 0;
    auto const copy_weights = [&](int step) {
      ptx::wait_for_phase(shared.w_empty + w_walk.place, w_walk.round ^ 1);
      WPlace& place = shared.w[w_walk.place];
      int const windows = min(kWindows, steps - step), row_bytes = m.k / 2, scale_columns = m.k / 16;
      bool const mine = piece < 2 * windows;
      std::uint8_t const* const codes = m.codes + step * (kWindow / 2) + piece * 16;
      unsigned char* const to = place.codes + row0 * 128 + (piece ^ (row0 % 4 * 2)) * 16;
#pragma unroll 4
      for (int i = 0; i < kItemRows / 16; ++i) {
        int const row = weight_row<kDown>(a, m.rows, first, row0 + 16 * i);
        if (mine) ptx::copy16(to + i * 16 * 128, codes + static_cast<std::int64_t>(max(row, 0)) * row_bytes, row >= 0);
      }
#pragma unroll
      for (int i = 0; i < kItemRows / kGroup; ++i) {
        int const row = weight_row<kDown>(a, m.rows, first, thread + kGroup * i);
        std::uint8_t const* const from = m.scales + static_cast<std::int64_t>(max(row, 0)) * scale_columns + step * 4;
        unsigned char* const scales = place.scales + (thread + kGroup * i) * 16;
        if (scale_columns % 16 == 0) {
          ptx::copy16(scales, from, row >= 0);
        } else {
          for (int j = 0; j < windows; ++j) ptx::copy4(scales + 4 * j, from + 4 * j, row >= 0);
        }
      }
      ptx::arrive_when_copied(shared.w_full + w_walk.place);
      w_walk.next();
    };
    if (steps > 0) copy_weights(0);
    if (steps > 0 || !there) {
      // The place of x that is empty now was that of an item whose end is so long ago that nobody reads what is overwritten here.
      ptx::wait_for_phase(shared.x_empty + x_walk.place, x_walk.round ^ 1);
      Item& item = shared.items[item_walk.place];
      if (thread == 0) {
        item.steps = steps, item.first = first, item.tokens = tile.count, item.out_rows = m.out_rows, item.out = m.out;
        if (steps > 0) item.global = kUnscale * m.globals[0], item.global_up = kUnscale * m.globals[m.global_columns - 1];
      }
      int const x_pieces = m.k / 8;
      std::uint32_t x_from[kTokens];  // in pieces of 16 bytes
      if (there) {
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          int const token = row0 + 16 * i, row = tile.first + min(token, tile.count - 1);
          int const pair = tile.expert < 0 ? row : at<int const>(a, p.at.pairs)[row];
          x_from[i] = static_cast<std::uint32_t>(kDown || tile.expert < 0 ? row : pair / a.topk) * x_pieces + piece;
          if (piece == 0) {
            item.targets[token] = kDown ? pair : row;
            if (!kDown) item.factors[token] = a.router_weight_on_input && tile.expert >= 0 ? a.weights[pair] : 1.0f;
          }
        }
      }
      ptx::arrive_at(shared.known + item_walk.place);
      item_walk.next();
      if (!there) break;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        if (step % kWindows == 0 && step + kWindows < steps) copy_weights(step + kWindows);
        ptx::wait_for_phase(shared.x_empty + x_walk.place, x_walk.round ^ 1);
        uint4 const* const x = reinterpret_cast<uint4 const*>(m.x) + 8 * step;
        unsigned char* const to = shared.x[x_walk.place].x + row0 * 128 + (piece ^ (row0 % 8)) * 16;
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          if (row0 + 16 * i < tile.count) ptx::copy16(to + i * 16 * 128, x + x_from[i], true);
        }
        ptx::arrive_when_copied(shared.x_full + x_walk.place);
        x_walk.next();
      }
    }
    if (thread == 0) shared.next[turn] = after_next;
    ptx::barrier_wait(1, kGroup);
    number = next, next = shared.next[turn], tile = next_tile;
  }
}

// x / (1 + exp(-x)), within a few units of the last place; NaN stays NaN.
__device__ __forceinline__ float silu(float x) { return x * ptx::reciprocal(1.0f + ptx::power_of_2(-1.4426950408889634f * x)); }

// A warpgroup that multiplies: `half` 0 or 1 of the rows of an item, for kColumns tokens or fewer.
template <int kColumns, bool kDown>
__device__ __forceinline__ void multiply_item(Arguments const& a, Item const& item, Shared& shared, Walk<kXPlaces>& x_walk,
                                              Walk<kWPlaces>& w_walk, int half) {
  int const lane = threadIdx.x % 32, warp = threadIdx.x % kGroup / 32, g = lane >> 2, t = lane & 3;
  int const row0 = half * 128 + warp * 16 + g, steps = item.steps;
  float c[2][kColumns / 2] = {};

  // The operands of group `group` of a window: half of its k (8 of the 16 that a thread has) of one of the two operands.
  std::uint32_t w[2][2][4];
  auto const decode = [&](WPlace const& place, int window, int group) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const row = row0 + group % 2 * 64 + i * 8;
      std::uint32_t const scale = scale_of<__nv_bfloat16>(place.scales[row * 16 + window * 4 + t]);
      std::uint32_t (&to)[4] = w[group % 2][i];
      operands8<__nv_bfloat16>(
          *reinterpret_cast<std::uint32_t const*>(place.codes + row * 128 + (window ^ (g & 3)) * 32 + t * 8 + group / 2 * 4), to);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = mul2<__nv_bfloat16>(to[j], scale);
    }
  };
  auto const wait_for_x = [&]() {
    ptx::wait_for_phase(shared.x_full + x_walk.place, x_walk.round);
    ptx::show_to_products();
  };
  ptx::wait_for_phase(shared.w_full + w_walk.place, w_walk.round);
  decode(shared.w[w_walk.place], 0, 0);
  wait_for_x();
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    int const x_now = x_walk.place, w_now = w_walk.place, window = step % kWindows;
    bool const more = step + 1 < steps, last = window == kWindows - 1 || !more;
    std::uint64_t const b = b_of_swizzled(ptx::shared_address(shared.x[x_now].x));
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      std::uint32_t const(&a0)[4] = w[group % 2][0];
      std::uint32_t const(&a1)[4] = w[group % 2][1];
      std::uint64_t const first = b + group / 2 * 4;  // 16 k are 32 bytes, two units of the operand's address
      begin_products();
      product_m64k16<kColumns>(c[group % 2], a0[0], a1[0], a0[1], a1[1], first);
      product_m64k16<kColumns>(c[group % 2], a0[2], a1[2], a0[3], a1[3], first + 2);
      end_products();
      // The other operand's registers are free: the next group is decoded while this one is multiplied.
      wait_for_products<1>();
      if (group < 3) {
        decode(shared.w[w_now], window, group + 1);
      } else {
        x_walk.next();
        if (last) w_walk.next();
        if (last && more) ptx::wait_for_phase(shared.w_full + w_walk.place, w_walk.round);
        decode(shared.w[more ? w_walk.place : w_now], last ? 0 : window + 1, 0);
        if (more) wait_for_x();
      }
    }
    wait_for_products<0>();
    if (lane == 0) {
      ptx::arrive_at(shared.x_empty + x_now);
      if (last) ptx::arrive_at(shared.w_empty + w_now);
    }
  }
  take_sums(c[0]);
  take_sums(c[1]);

  int const row = kDown ? item.first + half * 128 + warp * 32 + 4 * g : item.first + half * 64 + warp * 16 + 2 * g;
  if (row >= item.out_rows) return;
  moe::ActivationNumbers swish = a;
  swish.activation = moe::Activation::kSwish;  // for_warpgroups(): no other comes here
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int const token = 8 * j + 2 * t + e;
      if (token >= item.tokens) continue;
      float const first[2] = {c[0][4 * j + e], c[0][4 * j + 2 + e]}, second[2] = {c[1][4 * j + e], c[1][4 * j + 2 + e]};
      __nv_bfloat16* const to = item.out + static_cast<std::int64_t>(item.targets[token]) * item.out_rows + row;
      if constexpr (kDown) {
        *reinterpret_cast<uint2*>(to) = {word_of_floats<__nv_bfloat16>(first[0] * item.global, first[1] * item.global),
                                         word_of_floats<__nv_bfloat16>(second[0] * item.global, second[1] * item.global)};
      } else {
        float const gate = item.global * item.factors[token], up = item.global_up * item.factors[token];
        *reinterpret_cast<std::uint32_t*>(to) = word_of_floats<__nv_bfloat16>(
            moe::activate(swish, first[0] * gate, second[0] * up), moe::activate(swish, first[1] * gate, second[1] * up));
      }
    }
  }
}

// kColumns for a tile of `count` tokens.
template <typename Body>
__device__ __forceinline__ void with_columns(int count, Body&& body) {
  if (count <= 16) body.template operator()<16>();
  else if (count <= 32) body.template operator()<32>();
  else if (count <= 48) body.template operator()<48>();
  else if (count <= 64) body.template operator()<64>();
  else if (count <= 80) body.template operator()<80>();
  else if (count <= 96) body.template operator()<96>();
  else if (count <= 112) body.template operator()<112>();
  else if (count <= 128) body.template operator()<128>();
  else if (count <= 144) body.template operator()<144>();
  else if (count <= 160) body.template operator()<160>();
  else body.template operator()<176>();
}

// A warpgroup that multiplies.
template <bool kDown>
__device__ __forceinline__ void multiply_items(Arguments const& a, Shared& shared, int half) {
  Walk<kXPlaces> x_walk;
  Walk<kWPlaces> w_walk;
#pragma unroll 1
  for (Walk<kItems> item_walk;; item_walk.next()) {
    ptx::wait_for_phase(shared.known + item_walk.place, item_walk.round);
    Item const& item = shared.items[item_walk.place];
    if (item.steps == 0) break;
    with_columns(item.tokens, [&]<int kColumns>() { multiply_item<kColumns, kDown>(a, item, shared, x_walk, w_walk, half); });
  }
}

template <bool kDown>
__global__ void __launch_bounds__(kItemThreads, 1)
    multiply_by_warpgroups(__grid_constant__ Arguments const a, __grid_constant__ Plan const p, int const row_tiles) {
#if defined(__CUDA_ARCH__) && !GB10_HW_WARPGROUPS
  ptx::stop();  // launched on 9.0 alone
#else
  std::uint32_t const address = ptx::shared_address(ptx::dynamic_shared());
  Shared& shared = *reinterpret_cast<Shared*>(ptx::dynamic_shared() + ((address + 1023) / 1024 * 1024 - address));
  if (threadIdx.x == 0) {
    for (std::uint64_t& barrier : shared.x_full) ptx::begin_phases(&barrier, kGroup);
    for (std::uint64_t& barrier : shared.w_full) ptx::begin_phases(&barrier, kGroup);
    for (std::uint64_t& barrier : shared.known) ptx::begin_phases(&barrier, kGroup);
    for (std::uint64_t& barrier : shared.x_empty) ptx::begin_phases(&barrier, 2 * kGroup / 32);
    for (std::uint64_t& barrier : shared.w_empty) ptx::begin_phases(&barrier, 2 * kGroup / 32);
  }
  __syncthreads();
  ptx::wait_for_previous();
  ptx::release_next();
  int const group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kGroup, 0);
  if (group == 0) {
    ptx::fewer_registers<40>();
    copy_items<kDown>(a, p, row_tiles, shared);
  } else {
    ptx::more_registers<232>();
    multiply_items<kDown>(a, shared, group - 1);
  }
#endif
}

}  // namespace gb10::moe_grouped
