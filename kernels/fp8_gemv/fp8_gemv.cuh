// W8A16 matrix times few vectors: FP8 weights, 16-bit activations, at the speed of memory.
//
//   out[m, n] = sum over k of x[m, k] * e4m3(weight[n, k]) * scale(n, k)  +  bias[n]
//
// x [M, K] bf16 or f16, M = 1..16, K a multiple of 64; weight float8_e4m3fn [N, K] row-major, any N; bias [N] and out [M, N]
// of x's dtype. Scales are float32: one a row, scale(n, k) = s[n]; or one a block of 128 x 128,
// scale(n, k) = s[n / 128, k / 128]. Sums are FP32 and their order is fixed by the shape: equal bits run to run.
//
// Every finite e4m3 number is exact in bf16 and in f16, so the only roundings are those of the FP32 sums and of the output.
// NaN bytes (0x7F, 0xFF) do not belong in a weight: with f16 on a GPU that has the conversion they give NaN, else +-480.
//
// The loop is split_k.cuh's. A unit is 128 k, two chunks of 64: with g = lane / 4 and t = lane % 4 a thread reads 16 bytes of a
// chunk, at k = 16 t, of the rows g and g + 8, which is four m16n8k16 matrix instructions. A batch is 128 bytes a thread. A
// GPU's worth of blocks stays for the whole weight. x is copied to shared memory once; where it is too large for that
// (kStaged = false) each warp reads it through L1 and L2.
//
// Bound by memory: K * N bytes. Needs sm_80; from 9.0 on weights, scales and bias are read before the kernel ahead in the
// stream has ended, so that kernel must not write them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fp8_gemv.h"
#include "gb10/arch.cuh"
#include "gb10/mma.cuh"
#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "split_k.cuh"

namespace gb10::fp8_gemv {

inline constexpr int kChunkK = 64;
inline constexpr int kUnitChunks = kScaleBlock / kChunkK;

// Four e4m3 bytes to two operand words. With f16: (0, 1) and (2, 3); with bf16: (0, 2) and (1, 3).
template <typename T>
__device__ __forceinline__ void decode4(std::uint32_t q, std::uint32_t& first, std::uint32_t& second);

template <>
__device__ __forceinline__ void decode4<__nv_bfloat16>(std::uint32_t q, std::uint32_t& first, std::uint32_t& second) {
  // Sign to bit 15, the other seven bits to 10..4: as bf16 that is 2^-120 of the value, subnormals too.
  std::uint32_t const sign = 0x80008000u, magnitude = 0x07F007F0u, two_to_120 = 0x7B807B80u;
  first = mul2<__nv_bfloat16>(((q << 8) & sign) | ((q << 4) & magnitude), two_to_120);
  second = mul2<__nv_bfloat16>((q & sign) | ((q >> 4) & magnitude), two_to_120);
}

template <>
__device__ __forceinline__ void decode4<__half>(std::uint32_t q, std::uint32_t& first, std::uint32_t& second) {
#if GB10_HW_E4M3
  ptx::from_e4m3(q, first, second);
#else
  // Sign to bit 15, the other seven bits to 13..7: as f16 that is 2^-8 of the value, subnormals too.
  std::uint32_t const sign = 0x80008000u, magnitude = 0x3F803F80u, two_to_8 = 0x5C005C00u;
  std::uint32_t const low = __byte_perm(q, 0, 0x1404), high = __byte_perm(q, 0, 0x3424);
  first = mul2<__half>((low & sign) | ((low >> 1) & magnitude), two_to_8);
  second = mul2<__half>((high & sign) | ((high >> 1) & magnitude), two_to_8);
#endif
}

// Eight activations in the order of decode4's operand words.
template <typename T>
__device__ __forceinline__ uint4 order8(uint4 x) {
  if constexpr (kIsBFloat16<T>) {
    return {__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x5410),
            __byte_perm(x.z, x.w, 0x7632)};
  }
  return x;
}

// Numbers between two tokens in shared memory: 16 bytes past a multiple of 128, so that 8 lanes of a quarter warp (2 tokens,
// 32 bytes apart within one) read different banks.
__host__ __device__ constexpr int token_stride(int columns) { return columns + 8; }

// Shared memory: the sums, then the activations.
template <int kTokenTiles, int kWarps>
std::size_t shared_bytes(int tokens, int columns, bool staged) {
  std::size_t const x = staged ? static_cast<std::size_t>(2) * tokens * token_stride(columns) : 0;
  return sizeof(float) * split_k::sum_floats<kTokenTiles, kWarps>() + x;
}

template <typename T, int kTokenTiles, bool kBlockScales, bool kStaged>
class Weights {
 public:
  static constexpr int kBatchUnits = 2;

  struct Batch {
    uint4 codes[kBatchUnits * kUnitChunks][2];
    float scales[kBlockScales ? kBatchUnits : 1];
  };

  __device__ __forceinline__ Weights(Arguments const& p, T* activations)
      : p_(p), activations_(activations), g_(threadIdx.x % 32 / 4), t_(threadIdx.x % 4), chunks_(p.columns / kChunkK) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      // Columns of the product beyond the last token are never written: they may read any token.
      int const token = min(8 * j + g_, p.tokens - 1);
      x_[j] = kStaged ? activations + token * token_stride(p.columns)
                      : static_cast<T const*>(p.x) + static_cast<std::size_t>(token) * p.columns;
      x_[j] += 16 * t_;
    }
  }

  __device__ __forceinline__ void load(Batch& batch, int tile, int unit, int end) const {
    int const first = unit * kUnitChunks, chunk_end = min(end * kUnitChunks, chunks_);
    auto const* weight = static_cast<std::uint8_t const*>(p_.weight) + first * kChunkK + 16 * t_;
    // Rows past the last one are read as the last one and never written.
    int const row = tile * split_k::kTileRows + g_;
    auto const* row0 = weight + static_cast<std::size_t>(min(row, p_.rows - 1)) * p_.columns;
    auto const* row1 = weight + static_cast<std::size_t>(min(row + 8, p_.rows - 1)) * p_.columns;
#pragma unroll
    for (int i = 0; i < kBatchUnits * kUnitChunks; ++i) {
      if (first + i < chunk_end) {
        ptx::load_weights(batch.codes[i][0], row0 + i * kChunkK);
        ptx::load_weights(batch.codes[i][1], row1 + i * kChunkK);
      }
    }
    if constexpr (kBlockScales) {
      int const columns = (p_.columns + kScaleBlock - 1) / kScaleBlock;
      float const* scales = p_.scales + static_cast<std::size_t>(tile * split_k::kTileRows / kScaleBlock) * columns + unit;
#pragma unroll
      for (int u = 0; u < kBatchUnits; ++u) {
        if (unit + u < end) batch.scales[u] = __ldg(scales + u);
      }
    }
  }

  __device__ __forceinline__ void multiply(float (&sum)[kTokenTiles][4], Batch const& batch, int unit, int end) const {
    int const first = unit * kUnitChunks, chunk_end = min(end * kUnitChunks, chunks_);
#pragma unroll
    for (int u = 0; u < kBatchUnits; ++u) {
      float part[kTokenTiles][4] = {};
#pragma unroll
      for (int i = u * kUnitChunks; i < (u + 1) * kUnitChunks; ++i) {
        if (first + i < chunk_end) multiply_chunk(kBlockScales ? part : sum, batch.codes[i], (first + i) * kChunkK);
      }
      if constexpr (kBlockScales) {
        if (unit + u < end) {
#pragma unroll
          for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[j][i] += batch.scales[u] * part[j][i];
          }
        }
      }
    }
  }

  __device__ __forceinline__ void activations_ready() const {
    ptx::wait_for_previous();
    if constexpr (kStaged) {
      int const groups = p_.columns / 8;
      auto const* x = static_cast<uint4 const*>(p_.x);
      for (int token = 0; token < p_.tokens; ++token) {
        for (int i = threadIdx.x; i < groups; i += blockDim.x) {
          *reinterpret_cast<uint4*>(activations_ + token * token_stride(p_.columns) + 8 * i) =
              order8<T>(x[static_cast<std::size_t>(token) * groups + i]);
        }
      }
      __syncthreads();
    }
  }

  __device__ __forceinline__ void read_row(int row) {
    if (row >= p_.rows) return;
    if constexpr (!kBlockScales) scale_ = __ldg(p_.scales + row);
    if (p_.bias != nullptr) bias_ = static_cast<float>(__ldg(static_cast<T const*>(p_.bias) + row));
  }

  __device__ __forceinline__ float result(float total) const { return kBlockScales ? total + bias_ : fmaf(total, scale_, bias_); }

 private:
  __device__ __forceinline__ void multiply_chunk(float (&c)[kTokenTiles][4], uint4 const (&codes)[2], int k) const {
    uint4 b[kTokenTiles][2];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint4 const v = *reinterpret_cast<uint4 const*>(x_[j] + k + 8 * half);
        b[j][half] = kStaged ? v : order8<T>(v);
      }
    }
    std::uint32_t const w0[4] = {codes[0].x, codes[0].y, codes[0].z, codes[0].w};
    std::uint32_t const w1[4] = {codes[1].x, codes[1].y, codes[1].z, codes[1].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t a0, a1, a2, a3;
      decode4<T>(w0[i], a0, a2);
      decode4<T>(w1[i], a1, a3);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        uint4 const& v = b[j][i / 2];
        mma_m16n8k16<T>(c[j], a0, a1, a2, a3, i % 2 ? v.z : v.x, i % 2 ? v.w : v.y);
      }
    }
  }

  Arguments const& p_;
  T* activations_;
  T const* x_[kTokenTiles];
  int g_, t_, chunks_;
  float scale_ = 1.0f, bias_ = 0.0f;
};

template <typename T, int kTokenTiles, int kWarps, bool kBlockScales, bool kStaged>
__global__ void __launch_bounds__(32 * kWarps, split_k::kSmWarps / kWarps) gemv(Arguments const p) {
  ptx::release_next();
  auto* const sums = reinterpret_cast<float*>(ptx::dynamic_shared());
  auto* const activations = reinterpret_cast<T*>(sums + split_k::sum_floats<kTokenTiles, kWarps>());
  Weights<T, kTokenTiles, kBlockScales, kStaged> weights(p, activations);
  int const units = (p.columns + kScaleBlock - 1) / kScaleBlock;
  split_k::Loop<T, kTokenTiles, kWarps, decltype(weights)>(weights, sums, static_cast<T*>(p.out), units, p.tokens, p.rows).run();
}

}  // namespace gb10::fp8_gemv
