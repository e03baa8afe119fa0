// The warp-wide matrix instructions the kernels use, as functions. All are sm_80 and newer, FP32 accumulation. In all of them
// g = lane / 4 and t = lane % 4.
#pragma once

#include <cstdint>

#include "gb10/types.cuh"

namespace gb10 {

// c[16 x 8] += a[16 x 16] b[16 x 8]. A thread holds
//   a: {row g: k 2t, 2t+1}, {row g+8: the same k}, {row g: k 2t+8, 2t+9}, {row g+8: the same k}
//   b: {column g: k 2t, 2t+1}, {column g: k 2t+8, 2t+9}
//   c: row g: columns 2t, 2t+1; row g+8: the same columns.
// Any order of k does, as long as a and b agree on it.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                             std::uint32_t b0, std::uint32_t b1) {
  if constexpr (kIsBFloat16<T>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// c[16 x 8] += a[16 x 32, 2 of 4 kept] b[32 x 8], f16. Metadata and the fragments: see sparse24.cuh.
//   b: column g: k 2t, 2t+1 of each eight
template <int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k32(float (&c)[4], std::uint32_t const (&a)[4], uint4 b, std::uint32_t metadata) {
  asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(metadata), "n"(kSelector));
}

}  // namespace gb10
