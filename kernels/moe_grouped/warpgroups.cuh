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
inline constexpr int kPlaces = 6;    // of the ring
inline constexpr int kUnderWay = 2;  // steps that are being copied while their places count as empty

// A row of codes is 32 bytes, of scales 4, of x 128; the 16-byte pieces of x as b_of_swizzled wants them.
struct alignas(1024) Place {
  unsigned char x[kWideTile * 128];
  unsigned char codes[kItemRows * 32];
  unsigned char scales[kItemRows * 4];
};

// Shared memory, from a multiple of 1024 on.
struct Item {
  Place ring[kPlaces];
  std::uint64_t full[kPlaces], empty[kPlaces];
  int targets[2][2][kWideTile];  // of the two warpgroups, of two items: the rows of the result
};
inline constexpr int kItemBytes = static_cast<int>(sizeof(Item)) + 1024;

__host__ __device__ constexpr int rows_of_item(bool down) { return down ? kItemRows : kItemRows / 2; }  // of the result

// Where a walk around the ring is.
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
    return channel + ((m == 1) != a.up_first ? channels : 0);
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
  int first;  // row or channel of the result
};

template <bool kDown>
__device__ __forceinline__ Multiplied multiplied(Arguments const& a, Plan const& p, Tile const& tile, int first) {
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
  m.first = first;
  std::int64_t const shared_act = shared_expert ? static_cast<std::int64_t>(p.pairs) * a.w2.k : 0;
  __nv_bfloat16* const act = at<__nv_bfloat16>(a, p.at.act) + shared_act;
  __nv_bfloat16* const parts =
      at<__nv_bfloat16>(a, p.at.parts) + (shared_expert ? static_cast<std::int64_t>(p.pairs) * a.w2.rows : 0);
  m.x = kDown ? act : at<__nv_bfloat16>(a, p.at.parts);
  m.out = kDown ? parts : act;
  return m;
}

// Where an item begins: its tile and its first row or channel.
struct Begin {
  Tile tile;
  int first;
};
template <bool kDown>
__device__ __forceinline__ Begin begin_of(Arguments const& a, Plan const& p, int row_tiles, int item) {
  return {at<Tile const>(a, p.at.tiles)[item / row_tiles], item % row_tiles * rows_of_item(kDown)};
}

// The items of a block, in their order: body(item, begin).
template <bool kDown, typename Body>
__device__ __forceinline__ void for_items(Arguments const& a, Plan const& p, int row_tiles, Body&& body) {
  int const items = at<Tile const>(a, p.at.tiles)[p.at.tile_limit].first * row_tiles;
#pragma unroll 1
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    Begin const begin = begin_of<kDown>(a, p, row_tiles, item);
    if (begin.first < (kDown ? a.w2.rows : begin.tile.expert < 0 ? p.shared_intermediate : a.w2.k)) body(item, begin);
  }
}

// The warpgroup that copies.
template <bool kDown>
__device__ __forceinline__ void copy_items(Arguments const& a, Plan const& p, int row_tiles, Item& item) {
  int const thread = threadIdx.x % kGroup, x_piece = thread % 8, x_row = thread / 8, code_piece = thread % 2;
  constexpr int kTokens = kWideTile / 16;
  Walk walk, late;
  int open = 0;
  auto const show = [&]() {
    ptx::show_to_products();
    ptx::arrive_at(item.full + late.place);
    late.next();
  };
  for_items<kDown>(a, p, row_tiles, [&](int, Begin const& begin) {
    auto const& [tile, first] = begin;
    Multiplied const m = multiplied<kDown>(a, p, tile, first);
    int const steps = m.k / kWindow, x_pieces = m.k / 8, row_pieces = m.k / 32, scale_columns = m.k / 16;
    int x_from[kTokens], codes_from[4], scales_from[2];  // in pieces of 16 bytes; scales: in bytes
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      int const token = min(x_row + 16 * i, tile.count - 1), row = tile.first + token;
      x_from[i] = (kDown || tile.expert < 0 ? row : at<int const>(a, p.at.pairs)[row] / a.topk) * x_pieces + x_piece;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const row = weight_row<kDown>(a, m.rows, first, thread / 2 + 64 * i);
      codes_from[i] = row < 0 ? -1 : row * row_pieces + code_piece;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const row = weight_row<kDown>(a, m.rows, first, thread + kGroup * i);
      scales_from[i] = row < 0 ? -1 : row * scale_columns;
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::wait_for_phase(item.empty + walk.place, walk.round ^ 1);
      Place& place = item.ring[walk.place];
      walk.next();
      uint4 const* const codes = reinterpret_cast<uint4 const*>(m.codes) + 2 * step;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        ptx::copy16_of_line(place.codes + (thread / 2 + 64 * i) * 32 + code_piece * 16, codes + max(codes_from[i], 0),
                            codes_from[i] >= 0);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::copy4(place.scales + (thread + kGroup * i) * 4, m.scales + max(scales_from[i], 0) + 4 * step, scales_from[i] >= 0);
      }
      uint4 const* const x = reinterpret_cast<uint4 const*>(m.x) + 8 * step;
      unsigned char* const to = place.x + x_row * 128 + (x_piece ^ (x_row % 8)) * 16;
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        if (x_row + 16 * i < tile.count) ptx::copy16(to + i * 16 * 128, x + x_from[i], true);
      }
      ptx::end_copies();
      if (++open > kUnderWay) {
        ptx::wait_for_copies<kUnderWay>();
        show();
        --open;
      }
    }
  });
  ptx::wait_for_copies<0>();
  for (; open > 0; --open) show();
}

// A warpgroup that multiplies: `half` 0 or 1 of the rows of item `number`, for kColumns tokens or fewer.
template <int kColumns, bool kDown>
__device__ __forceinline__ void multiply_item(Arguments const& a, Plan const& p, int row_tiles, int number, int steps, Item& item,
                                              Walk& walk, int half, int turn) {
  int const lane = threadIdx.x % 32, warp = threadIdx.x % kGroup / 32, g = lane >> 2, t = lane & 3;
  int const row0 = half * 128 + warp * 16 + g;
  float c[2][kColumns / 2] = {};

  // The operands of group `group` of a step: half of its k (16-byte halves of a window) of one of the two operands.
  std::uint32_t w[2][2][4];
  auto const decode = [&](Place const& place, int group) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const row = row0 + group % 2 * 64 + i * 8;
      std::uint32_t const scale = scale_of<__nv_bfloat16>(place.scales[row * 4 + t]);
      std::uint32_t(&to)[4] = w[group % 2][i];
      operands8<__nv_bfloat16>(*reinterpret_cast<std::uint32_t const*>(place.codes + row * 32 + t * 8 + group / 2 * 4), to);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j] = mul2<__nv_bfloat16>(to[j], scale);
    }
  };
  ptx::wait_for_phase(item.full + walk.place, walk.round);
  decode(item.ring[walk.place], 0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    int const now = walk.place;
    std::uint64_t const b = b_of_swizzled(ptx::shared_address(item.ring[now].x));
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
        decode(item.ring[now], group + 1);
      } else {
        walk.next();
        bool const more = step + 1 < steps;
        if (more) ptx::wait_for_phase(item.full + walk.place, walk.round);
        decode(item.ring[more ? walk.place : now], 0);
      }
    }
    wait_for_products<0>();
    if (lane == 0) ptx::arrive_at(item.empty + now);
  }
  take_sums(c[0]);
  take_sums(c[1]);

  // What the results need is read only now: while products are under way there are no registers for it.
  ptx::keep(number);
  auto const [tile, begin] = begin_of<kDown>(a, p, row_tiles, number);
  Multiplied const m = multiplied<kDown>(a, p, tile, begin);
  int const* const targets = item.targets[half][turn];
  float const global = kUnscale * m.globals[0], global_up = kUnscale * m.globals[m.global_columns - 1];
  int const row = kDown ? m.first + half * 128 + warp * 32 + 4 * g : m.first + half * 64 + warp * 16 + 2 * g;
  if (row >= m.out_rows) return;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int const token = 8 * j + 2 * t + e;
      if (token >= tile.count) continue;
      float const first[2] = {c[0][4 * j + e], c[0][4 * j + 2 + e]}, second[2] = {c[1][4 * j + e], c[1][4 * j + 2 + e]};
      if constexpr (kDown) {
        uint2 const four{word_of_floats<__nv_bfloat16>(first[0] * global, first[1] * global),
                         word_of_floats<__nv_bfloat16>(second[0] * global, second[1] * global)};
        *reinterpret_cast<uint2*>(m.out + static_cast<std::int64_t>(targets[token]) * m.out_rows + row) = four;
      } else {
        int const place = tile.first + token;
        float const factor = a.router_weight_on_input && tile.expert >= 0 ? a.weights[at<int const>(a, p.at.pairs)[place]] : 1.0f;
        moe::ActivationNumbers swish = a;
        swish.activation = moe::Activation::kSwish;  // for_warpgroups(): no other comes here
        std::uint32_t const two =
            word_of_floats<__nv_bfloat16>(moe::activate(swish, first[0] * global * factor, second[0] * global_up * factor),
                                          moe::activate(swish, first[1] * global * factor, second[1] * global_up * factor));
        *reinterpret_cast<std::uint32_t*>(m.out + static_cast<std::int64_t>(place) * m.out_rows + row) = two;
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
__device__ __forceinline__ void multiply_items(Arguments const& a, Plan const& p, int row_tiles, Item& item, int half) {
  int const thread = threadIdx.x % kGroup;
  Walk walk;
  int turn = 0;
  for_items<kDown>(a, p, row_tiles, [&](int number, Begin const& begin) {
    Tile const& tile = begin.tile;
    int const steps = (kDown ? tile.expert < 0 ? p.shared_intermediate : a.w2.k : a.w13.k) / kWindow;
    if constexpr (kDown) {
      for (int i = thread; i < tile.count; i += kGroup) {
        int const row = tile.first + i;
        item.targets[half][turn][i] = tile.expert < 0 ? row : at<int const>(a, p.at.pairs)[row];
      }
      // All have written, and nobody reads those of the item before the last.
      if (half == 0) ptx::barrier_wait(1, kGroup);
      else ptx::barrier_wait(2, kGroup);
    }
    with_columns(tile.count, [&]<int kColumns>() {
      multiply_item<kColumns, kDown>(a, p, row_tiles, number, steps, item, walk, half, turn);
    });
    turn ^= 1;
  });
}

template <bool kDown>
__global__ void __launch_bounds__(kItemThreads, 1)
    multiply_by_warpgroups(__grid_constant__ Arguments const a, __grid_constant__ Plan const p, int const row_tiles) {
  std::uint32_t const address = ptx::shared_address(ptx::dynamic_shared());
  Item& item = *reinterpret_cast<Item*>(ptx::dynamic_shared() + ((address + 1023) / 1024 * 1024 - address));
  if (threadIdx.x < kPlaces) {
    ptx::begin_phases(item.full + threadIdx.x, kGroup);
    ptx::begin_phases(item.empty + threadIdx.x, 2 * kGroup / 32);
  }
  __syncthreads();
  ptx::wait_for_previous();
  ptx::release_next();
  int const group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kGroup, 0);
  if (group == 0) {
    ptx::fewer_registers<40>();
    copy_items<kDown>(a, p, row_tiles, item);
  } else {
    ptx::more_registers<232>();
    multiply_items<kDown>(a, p, row_tiles, item, group - 1);
  }
}

}  // namespace gb10::moe_grouped
