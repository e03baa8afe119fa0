// The core of W4A16: a warp multiplies 16 rows of an NVFP4 weight with up to 8 tokens.
//
//   c[row, token] += sum over k of  e2m1(w[row, k]) * block_scale[row, k / 16] * x[token, k] / 128
//
// Weight in its native layout: packed uint8 [N, K / 2], the even k in the low nibble; block scales float8_e4m3fn, finite and
// not negative. The caller multiplies by 128 * global_scale at the end. e2m1 * block_scale has at most 6 significant bits:
// the product below is exact in f16, so the only roundings are those of the FP32 accumulation.
//
// A warp takes tiles of 16 rows x 256 k. With g = lane / 4 and t = lane % 4 a thread owns rows g and g + 8 and the 64
// consecutive k that begin at 64 t: two 16-byte loads and one 4-byte scale load a row, in linear and in swizzled scales alike.
// Within each word of 8 codes the matrix instruction sees k in the order of operands8(); x lies in shared memory in that order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/arch.cuh"
#include "gb10/e2m1.cuh"
#include "gb10/mma.cuh"
#include "gb10/types.cuh"

namespace gb10::w4a16 {

inline constexpr int kTileRows = 16;
inline constexpr int kTileK = 256;
inline constexpr int kThreadK = 64;  // consecutive k of one thread in a tile: four block scales
inline constexpr float kUnscale = 128.0f;

// Targets with the instruction decode two neighbours at a time, and to their plain value.
inline constexpr bool kNaturalOrder = GB10_HW_E2M1;

// Eight codes to four operand words of f16. In natural order word p holds codes 2p and 2p + 1, as their values; else codes p and
// p + 4, as 2^-14 of their values.
__device__ __forceinline__ void operands8(std::uint32_t q, std::uint32_t (&out)[4]) {
  if constexpr (kNaturalOrder) {
    e2m1::decode8_f16(q, out);
  } else {
    // Sign in bit 15, the magnitude in 11..9, all in the upper byte: four codes a step, then one byte permute a pair.
    std::uint32_t const sign = 0x80808080u, magnitude = 0x0E0E0E0Eu;
    std::uint32_t const even = ((q << 4) & sign) | ((q << 1) & magnitude);
    std::uint32_t const odd = (q & sign) | ((q >> 3) & magnitude);
    out[0] = __byte_perm(even, 0, 0x2404);
    out[1] = __byte_perm(odd, 0, 0x2404);
    out[2] = even & 0xFF00FF00u;
    out[3] = odd & 0xFF00FF00u;
  }
}

// Block scales 2 i and 2 i + 1 of a word of four, in the two halves. Their product with an operand is 2^-7 of the weight.
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t scales, int i) {
  // As f16 bits the byte is 2^-8 of the scale.
  std::uint32_t const both = __byte_perm(scales, 0, i == 0 ? 0x4140 : 0x4342);
  return mul2<__half>(both << 7, twice(kNaturalOrder ? 0x4000 : 0x7800));
}

// The lower or the upper half twice. (The multiplication that follows takes it as an operand modifier.)
__device__ __forceinline__ std::uint32_t spread(std::uint32_t pair, int half) {
  __half2 const v = pair_of<__half>(pair);
  return word_of(half == 0 ? __low2half2(v) : __high2half2(v));
}

// Offset in bytes of the four scales of (row, scale columns column .. column + 3), column a multiple of 4.
template <bool kSwizzled>
__device__ __forceinline__ std::size_t scale_offset(int row, int column, int scale_columns) {
  if constexpr (kSwizzled) {
    int const tiles = (scale_columns + 3) / 4;
    std::size_t const tile = static_cast<std::size_t>(row / 128) * tiles + column / 4;
    return tile * 512 + (row % 32) * 16 + (row % 128) / 32 * 4;
  } else {
    return static_cast<std::size_t>(row) * scale_columns + column;
  }
}

// What a thread holds of one tile: 64 codes and 4 scales of each of two rows.
struct Tile {
  uint4 codes[2][2];
  std::uint32_t scales[2];
};

// A tile by way of shared memory, so that a warp has many in flight without registers for them: each warp owns a ring of places.
struct alignas(16) Place {
  unsigned char codes[kTileRows * kTileK / 2];  // rows of 128 bytes; the 16-byte pieces of odd rows are exchanged in pairs, so that
                                                // 8 threads that read together meet different banks
  uint2 scales[32];                             // the words of a lane's two rows
};

// Where a lane copies its 16-byte piece of codes, lane % 8 of row lane / 8, in `codes`; 512 bytes further the same of row + 4.
__device__ __forceinline__ int code_target(int lane) { return lane / 8 * 128 + ((lane & 7) ^ (lane / 8 & 1)) * 16; }

// The tile at `place` (complete, and seen by the warp) into registers.
__device__ __forceinline__ void read(Tile& tile, Place const& place, int lane) {
  int const g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      tile.codes[i][j] = *reinterpret_cast<uint4 const*>(place.codes + (g + 8 * i) * 128 + ((2 * t + j) ^ (g & 1)) * 16);
    }
  }
  uint2 const scales = place.scales[lane];
  tile.scales[0] = scales.x;
  tile.scales[1] = scales.y;
}

// Activations in shared memory: a token's k in chunks of 64 with 8 numbers of padding, so that the four t of a quad read
// different banks. A token's stride leaves two tokens half a bank row apart.
__device__ __host__ __forceinline__ constexpr int chunk_stride() { return kThreadK + 8; }
__device__ __host__ __forceinline__ constexpr int token_stride(int k) {
  int const plain = (k + kThreadK - 1) / kThreadK * chunk_stride();
  return plain + (96 - plain % 64) % 64;  // 32 numbers past a multiple of 64: 64 bytes past a multiple of 128
}

// Eight consecutive activations as they come from memory, put into the order of operands8().
__device__ __forceinline__ uint4 in_k_order(uint4 v) {
  if constexpr (kNaturalOrder) return v;
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
          __byte_perm(v.y, v.w, 0x7632)};
}

// Activations are multiplied in f16, whose decode is the cheapest. bf16 has more range, so a token's bf16 numbers are first
// multiplied by a power of two that puts the largest magnitude into [2^14, 2^15). That is exact for all numbers down to 2^-32 of
// the largest (bf16 has 8 significant bits, f16 reaches down to 2^-24); below, the error is at most 2^-40 of the largest. The
// caller divides the sum by the same power. Infinities and NaN stay what they are.

// The largest magnitude of eight numbers, as the bits of a bf16 (0 where no scaling is needed).
template <typename T>
__device__ __forceinline__ std::uint32_t magnitude(uint4 v) {
  if constexpr (kIsBFloat16<T>) {
    std::uint32_t const mask = 0x7FFF7FFFu;
    std::uint32_t const pair = __vmaxu2(__vmaxu2(v.x & mask, v.y & mask), __vmaxu2(v.z & mask, v.w & mask));
    return max(pair >> 16, pair & 0xFFFFu);
  } else {
    return 0;
  }
}

// Powers of two for numbers whose largest magnitude has this exponent field of a float: to [2^14, 2^15), and back. Fields below 16
// count as 16 and 255 as 254, so that both powers are normal numbers.
__device__ __forceinline__ std::uint32_t exponent_of(std::uint32_t field) { return min(max(field, 16u), 254u); }
__device__ __forceinline__ float power_to(std::uint32_t exponent) { return __uint_as_float((268u - exponent) << 23); }
__device__ __forceinline__ float power_back(std::uint32_t exponent) { return __uint_as_float((exponent - 14u) << 23); }

// What a token of this magnitude is multiplied with, and its sums.
struct Factor {
  float scale;
  float inverse;
};

template <typename T>
__device__ __forceinline__ Factor factor_for(std::uint32_t magnitude) {
  if constexpr (kIsBFloat16<T>) {
    std::uint32_t const exponent = exponent_of(magnitude >> 7);
    return {power_to(exponent), power_back(exponent)};
  } else {
    return {1.0f, 1.0f};
  }
}

// Eight consecutive activations as they come from memory, to f16 and into the order of operands8().
template <typename T>
__device__ __forceinline__ uint4 staged(uint4 v, float scale) {
  if constexpr (kIsBFloat16<T>) {
    auto const convert = [scale](std::uint32_t word) {
      float2 const v = floats_of<T>(word);
      return word_of_floats<__half>(v.x * scale, v.y * scale);
    };
    v = {convert(v.x), convert(v.y), convert(v.z), convert(v.w)};
  }
  return in_k_order(v);
}

// The operands of one word of 8 codes of both rows, weights times block scales.
__device__ __forceinline__ void weights8(Tile const& tile, int word, std::uint32_t (&out)[2][4]) {
  int const block = word / 2, lane = word % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint4 const& quad = tile.codes[i][word / 4];
    std::uint32_t const scale = spread(scale_pair(tile.scales[i], block / 2), block % 2);
    operands8(lane == 0 ? quad.x : lane == 1 ? quad.y : lane == 2 ? quad.z : quad.w, out[i]);
#pragma unroll
    for (int p = 0; p < 4; ++p) out[i][p] = mul2<__half>(out[i][p], scale);
  }
}

// All words of a tile: ahead of the activations, in 64 registers.
struct Operands {
  std::uint32_t words[8][2][4];
};
__device__ __forceinline__ void decode(Operands& out, Tile const& tile) {
#pragma unroll
  for (int word = 0; word < 8; ++word) weights8(tile, word, out.words[word]);
}

// Adds two matrix instructions: of a word of 8 codes, for groups of 8 tokens. x[i]: this thread's first number in shared memory, that
// is the chunk of this tile that belongs to t, of token g of group i. second: see multiply().
template <int kGroups>
__device__ __forceinline__ void multiply_word(float (&c)[kGroups][4], float (&second)[kGroups][4], std::uint32_t const (&a)[2][4],
                                              __half const* const (&x)[kGroups], int word) {
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    uint4 const b = *reinterpret_cast<uint4 const*>(x[i] + 8 * word);
    mma_m16n8k16<__half>(c[i], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
    mma_m16n8k16<__half>(kGroups == 1 ? second[i] : c[i], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
  }
}

// c[i] += weights * x[i] for groups of 8 tokens, a word at a time: weights(word, a) gives its operands, then(word) comes after. With
// one group the sum is kept in two parts, so that the matrix instructions wait less for each other.
template <int kGroups, typename Weights, typename Then>
__device__ __forceinline__ void multiply_words(float (&c)[kGroups][4], __half const* const (&x)[kGroups], Weights&& weights,
                                               Then&& then) {
  float second[kGroups][4] = {};
#pragma unroll
  for (int word = 0; word < 8; ++word) {
    std::uint32_t a[2][4];
    weights(word, a);
    multiply_word<kGroups>(c, second, a, x, word);
    then(word);
  }
  if constexpr (kGroups == 1) {
#pragma unroll
    for (int j = 0; j < 4; ++j) c[0][j] += second[0][j];
  }
}

// The weights are decoded once.
template <int kGroups>
__device__ __forceinline__ void multiply(float (&c)[kGroups][4], Tile const& tile, __half const* const (&x)[kGroups]) {
  multiply_words<kGroups>(c, x, [&](int word, std::uint32_t (&a)[2][4]) { weights8(tile, word, a); }, [](int) {});
}

// The same with operands, in which the next tile's take their place, if there is one.
template <int kGroups, bool kNext>
__device__ __forceinline__ void multiply(float (&c)[kGroups][4], Operands& operands, Tile const& next,
                                         __half const* const (&x)[kGroups]) {
  auto const take = [&](int word, std::uint32_t (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = operands.words[word][i / 4][i % 4];
  };
  multiply_words<kGroups>(c, x, take, [&](int word) {
    if constexpr (kNext) weights8(next, word, operands.words[word]);
  });
}

// The same for one group of 8 tokens.
__device__ __forceinline__ void multiply(float (&c)[4], Tile const& tile, __half const* x) {
  __half const* const group[1] = {x};
  multiply<1>(reinterpret_cast<float (&)[1][4]>(c), tile, group);
}

}  // namespace gb10::w4a16
