// The first launch of moe_decode for one token (gate_up.cuh has the general one): without lists, and with one meeting of the block
// before the weights are multiplied.
//
// Every warp finds the chosen experts from the ids in its own lanes, and asks for its first weights before the activations are
// there. A tile is 8 gate rows and the 8 up rows of the same channels, cut into parts of 256 k. A block owns a range of the tiles of
// all experts and its warps share their parts evenly; the sums meet in shared memory at the end. Each part of x has a power of two
// of its own. All columns of the matrix instruction are the same token.
#pragma once

#include "entries.cuh"
#include "gate_up.cuh"
#include "ring.cuh"

namespace gb10::moe_decode {

inline constexpr int kOneWarps = 12;
inline constexpr int kOneDepth = 2;  // parts that a warp keeps in flight
static_assert(kMaxExperts <= 1 << 13 && moe::kMaxTopk <= 32);

struct OnePlan {
  int tiles, shared_tiles;  // of an expert
  int parts;                // of 256 k
  int last_chunk;           // of 64 k
  int most_tiles;           // of a block
  int values;               // of act
  bool bfloat16;
};

// Whether it takes this call, if its shared memory is there.
inline bool takes_one(Arguments const& a) { return a.tokens == 1 && a.gated && !a.interleaved && !a.router_weight_on_input; }

inline OnePlan one_plan(Arguments const& a, Sizes const& s, int blocks, bool bfloat16) {
  int const tiles = a.topk * s.channel_tiles + s.shared_channel_tiles;
  return {
      s.channel_tiles, s.shared_channel_tiles, k_tiles(a.w13.k), a.w13.k / w4a16::kThreadK - 1, divide_up(tiles, blocks), s.values,
      bfloat16};
}

// Shared memory: w4a16::Place ring[warps][kOneDepth]; float4 pieces[most_tiles + warps][32]; x [parts * 256, padded] in f16;
// float inverse[parts]; int chosen[warps][32].
inline int one_bytes(OnePlan const& plan, int warps) {
  return warps * (kOneDepth * static_cast<int>(sizeof(w4a16::Place)) + 128) + (plan.most_tiles + warps) * 512 +
         plan.parts * (4 * w4a16::chunk_stride() * 2) + (plan.parts + 3) / 4 * 16;
}

template <bool kSwizzled>
__global__ void __launch_bounds__(32 * kGateUpWarps, 1)
    gate_up_one(__grid_constant__ Arguments const a, __grid_constant__ OnePlan const plan) {
  int const lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3, warps = blockDim.x / 32;
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  int const parts = plan.parts, k = a.w13.k, row_bytes = k / 2, part_stride = 4 * w4a16::chunk_stride();
  w4a16::Place* const ring = reinterpret_cast<w4a16::Place*>(ptx::dynamic_shared()) + warp * kOneDepth;
  float4* const pieces = reinterpret_cast<float4*>(ring + (warps - warp) * kOneDepth);
  __half* const x = reinterpret_cast<__half*>(pieces + (plan.most_tiles + warps) * 32);
  float* const inverse = reinterpret_cast<float*>(x + parts * part_stride);
  int* const chosen = reinterpret_cast<int*>(inverse + parts) + warp * 32;

  ptx::wait_for_previous();
  ptx::release_next();
  moe::RawId raw{-1, 0};
  if (lane < a.topk) raw = moe::raw_id(a, lane);
  auto const load_x = [&](int part) {
    int const at = part * w4a16::kTileK + lane * 8;
    return part < parts && at < k ? *reinterpret_cast<uint4 const*>(static_cast<__half const*>(a.x) + at) : uint4{0, 0, 0, 0};
  };
  uint4 own_x = load_x(warp);

  // Lane u: the u-th chosen expert and its slot; of equal ids the first slot.
  int const expert = moe::local_expert(a, raw);
  std::uint32_t const below = (1u << lane) - 1, same = __match_any_sync(~0u, expert);
  std::uint32_t const firsts = __ballot_sync(~0u, expert >= 0 && (same & below) == 0);
  int const routed_tiles = __popc(firsts) * plan.tiles;
  if (firsts >> lane & 1) chosen[__popc(firsts & below)] = expert << 5 | lane;
  __syncwarp();
  int const own_choice = lane < __popc(firsts) ? chosen[lane] : 0;

  // This block's tiles, and this warp's parts of them.
  unsigned const total = routed_tiles + plan.shared_tiles, share = total / gridDim.x, more = total % gridDim.x;
  int const begin = blockIdx.x * share + min(blockIdx.x, more), count = share + (blockIdx.x < more ? 1 : 0);
  auto const bound = [&](int of) {
    return static_cast<int>(static_cast<unsigned>(count * parts * of) / static_cast<unsigned>(warps));
  };
  int const first_part = bound(warp), end_part = bound(warp + 1);

  // Where a tile's weights are: those of its first gate row, and from there to the first up row.
  struct Tile {
    std::uint8_t const* codes;
    std::uint8_t const* scales;  // swizzled: of the matrix
    float const* globals;
    int row, apart, act, global_step;
  };
  auto const locate = [&](int v) {
    int const place = begin + v, index = static_cast<unsigned>(place) / plan.tiles;
    bool const is_shared = place >= routed_tiles;
    int const choice = __shfl_sync(~0u, own_choice, is_shared ? 0 : index);
    int const e = is_shared ? 0 : choice >> 5, slot = is_shared ? a.topk : choice & 31;
    int const tile = place - (is_shared ? routed_tiles : index * plan.tiles);
    Matrix const& m = is_shared ? a.shared_w13 : a.w13;
    int const width = is_shared ? a.shared_w2.k : a.w2.k;
    Tile out;
    out.row = tile * 8 + (a.up_first ? width : 0);
    out.apart = a.up_first ? -width : width;
    out.act = slot * a.w2.k + tile * 8;
    out.codes = m.codes + (static_cast<std::int64_t>(e) * m.rows + out.row) * row_bytes;
    out.scales = m.scales + e * m.scale_bytes + (kSwizzled ? 0 : out.row * (row_bytes >> 3));
    out.globals = m.globals + e * m.global_columns;
    out.global_step = m.global_columns - 1;
    return out;
  };

  int const to = w4a16::code_target(lane), lane_bytes = (lane >> 3) * row_bytes, last_piece = 2 * plan.last_chunk + 1;
  std::uint32_t const ring_address = ptx::shared_address(ring);
  Tile asked{};
  int next = first_part, tile_of_next = static_cast<unsigned>(first_part) / parts, part_of_next = first_part - tile_of_next * parts;
  bool located = false;
  auto const ask = [&](int place) {
    if (next < end_part) {
      if (!located) asked = locate(tile_of_next);
      std::uint32_t const address = ring_address + place * static_cast<int>(sizeof(w4a16::Place));
      std::uint8_t const* const codes = asked.codes + (lane_bytes + min(part_of_next * 8 + (lane & 7), last_piece) * 16);
      int const step = asked.apart * row_bytes;
      ptx::copy16(address + to, codes);
      ptx::copy16(address + to + 512, codes + 4 * row_bytes);
      ptx::copy16(address + to + 1024, codes + step);
      ptx::copy16(address + to + 1536, codes + step + 4 * row_bytes);
      int const chunk = min(part_of_next * 4 + t, plan.last_chunk);
      std::uint8_t const *first, *second;
      if constexpr (kSwizzled) {
        first = asked.scales + static_cast<unsigned>(w4a16::scale_offset<true>(asked.row + g, chunk * 4, row_bytes / 8));
        second =
            asked.scales + static_cast<unsigned>(w4a16::scale_offset<true>(asked.row + asked.apart + g, chunk * 4, row_bytes / 8));
      } else {
        first = asked.scales + (g * (row_bytes >> 3) + chunk * 4);
        second = first + (step >> 3);
      }
      std::uint32_t const scales = address + static_cast<int>(offsetof(w4a16::Place, scales)) + lane * 8;
      ptx::copy4(scales, first);
      ptx::copy4(scales + 4, second);
      ++next;
      located = ++part_of_next < parts;
      if (!located) {
        part_of_next = 0;
        ++tile_of_next;
      }
    }
    ptx::end_copies();
  };
#pragma unroll 1
  for (int d = 0; d < kOneDepth; ++d) ask(d);

  // What the tile that this warp finishes first is multiplied with.
  Tile finished{};
  float globals[2] = {};
  auto const prepare = [&](int v) {
    finished = locate(v);
    globals[0] = w4a16::kUnscale * __ldg(finished.globals);
    globals[1] = w4a16::kUnscale * __ldg(finished.globals + finished.global_step);
  };
  if (warp < count) prepare(warp);

#pragma unroll 1
  for (int part = warp; part < parts; part += warps) {
    if (part != warp) own_x = load_x(part);
    w4a16::Factor factor{1.0f, 1.0f};
    if (plan.bfloat16) {
      factor = w4a16::factor_for<__nv_bfloat16>(__reduce_max_sync(~0u, w4a16::magnitude<__nv_bfloat16>(own_x)));
      own_x = w4a16::staged<__nv_bfloat16>(own_x, factor.scale);
    } else {
      own_x = w4a16::in_k_order(own_x);
    }
    *reinterpret_cast<uint4*>(x + part * part_stride + lane / 8 * w4a16::chunk_stride() + lane % 8 * 8) = own_x;
    if (lane == 0) inverse[part] = factor.inverse;
  }
  __syncthreads();

  float c[4] = {};
  int at = 0, tile = static_cast<unsigned>(first_part) / parts, part = first_part - tile * parts;
#pragma unroll 1
  for (int i = first_part; i < end_part; ++i) {
    ptx::wait_for_copies<kOneDepth - 1>();
    __syncwarp();
    w4a16::Tile held;
    w4a16::read(held, ring[at], lane);
    __syncwarp();
    ask(at);
    at = at + 1 == kOneDepth ? 0 : at + 1;
    float sum[4] = {};
    w4a16::multiply(sum, held, x + part * part_stride + t * w4a16::chunk_stride());
    float const back = inverse[part];
#pragma unroll
    for (int j = 0; j < 4; ++j) c[j] = fmaf(sum[j], back, c[j]);
    if (++part == parts || i == end_part - 1) {
      // A warp's n-th piece of tile v lies at v + warp: warps share at most one tile with the next.
      pieces[(tile + warp) * 32 + lane] = {c[0], c[1], c[2], c[3]};
      c[0] = c[1] = c[2] = c[3] = 0.0f;
      part = 0;
      ++tile;
    }
  }
  __syncthreads();

  int const from = lane < warps ? bound(lane) : 0, until = lane < warps ? bound(lane + 1) : 0;
#pragma unroll 1
  for (int v = warp; v < count; v += warps) {
    if (v != warp) prepare(v);
    float gate = 0.0f, up = 0.0f;
#pragma unroll 1
    for (std::uint32_t which = __ballot_sync(~0u, from < until && from < (v + 1) * parts && until > v * parts); which;
         which &= which - 1) {
      float4 const piece = pieces[(v + __ffs(which) - 1) * 32 + lane];
      gate += piece.x;
      up += piece.z;
    }
    float const value = moe::activate(a, gate * globals[0], up * globals[1]);
    std::uint32_t largest = __float_as_uint(value) & 0x7FFFFFFFu;
    largest = max(largest, __shfl_xor_sync(~0u, largest, 4));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 8));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 16));
    std::uint32_t const exponent = w4a16::exponent_of(largest >> 23);
    __half* const act = static_cast<__half*>(a.act);
    if (t == 0) act[finished.act + act_place(g)] = __float2half_rn(value * w4a16::power_to(exponent));
    if (lane == 0) reinterpret_cast<std::uint8_t*>(act + plan.values)[finished.act / 8] = static_cast<std::uint8_t>(exponent);
  }
}

}  // namespace gb10::moe_decode
