// The warp-wide matrix instructions the kernels use, as functions. All are sm_80 and newer, FP32 accumulation. In all of them
// g = lane / 4 and t = lane % 4.
#pragma once

#include <cstdint>

#include "gb10/arch.cuh"
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

// ---- The matrix instruction of a warpgroup (9.0 alone, built for sm_90a): 4 warps, c[64 x N] += a[64 x 16] b[16 x N], asynchronous.
//
// Warp w has rows 16 w .. 16 w + 15, with a and c as in mma_m16n8k16 for each 8 columns. b lies in shared memory, a column's k together, 64
// of them in a row of 128 bytes (b_of_swizzled). begin_products() comes after the last other write to a register that a product reads
// or adds to; end_products() ends a group, and registers and shared memory are free again after the wait for it.

// The operand b at `address`, a multiple of 1024 (plus 32 bytes for each 16 k): row n has its 16-byte piece j at place j ^ (n % 8).
__device__ __forceinline__ std::uint64_t b_of_swizzled(std::uint32_t address) {
  return std::uint64_t{1} << 62 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 16 | ((address & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void begin_products() {
#if GB10_HW_WARPGROUPS
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void end_products() {
#if GB10_HW_WARPGROUPS
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int kNewer>
__device__ __forceinline__ void wait_for_products() {
#if GB10_HW_WARPGROUPS
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewer) : "memory");
#endif
}
// After the wait: the compiler takes the sums for written here.
template <int kCount>
__device__ __forceinline__ void take_sums(float (&c)[kCount]) {
#if GB10_HW_WARPGROUPS
#pragma unroll
  for (float& v : c) asm volatile("" : "+f"(v)::"memory");
#endif
}

#define GB10_C16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GB10_C32 \
  GB10_C16       \
      ", "       \
      "%8, %9, %10, %11, %12, %13, %14, %15"
#define GB10_C48 \
  GB10_C32       \
      ", "       \
      "%16, %17, %18, %19, %20, %21, %22, %23"
#define GB10_C64 \
  GB10_C48       \
      ", "       \
      "%24, %25, %26, %27, %28, %29, %30, %31"
#define GB10_C80 \
  GB10_C64       \
      ", "       \
      "%32, %33, %34, %35, %36, %37, %38, %39"
#define GB10_C96 \
  GB10_C80       \
      ", "       \
      "%40, %41, %42, %43, %44, %45, %46, %47"
#define GB10_C112 \
  GB10_C96        \
      ", "        \
      "%48, %49, %50, %51, %52, %53, %54, %55"
#define GB10_C128 \
  GB10_C112       \
      ", "        \
      "%56, %57, %58, %59, %60, %61, %62, %63"
#define GB10_C144 \
  GB10_C128       \
      ", "        \
      "%64, %65, %66, %67, %68, %69, %70, %71"
#define GB10_C160 \
  GB10_C144       \
      ", "        \
      "%72, %73, %74, %75, %76, %77, %78, %79"
#define GB10_C176 \
  GB10_C160       \
      ", "        \
      "%80, %81, %82, %83, %84, %85, %86, %87"
#define GB10_C192 \
  GB10_C176       \
      ", "        \
      "%88, %89, %90, %91, %92, %93, %94, %95"
#define GB10_V8(i) \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define GB10_W16 GB10_V8(0)
#define GB10_W32 GB10_W16, GB10_V8(8)
#define GB10_W48 GB10_W32, GB10_V8(16)
#define GB10_W64 GB10_W48, GB10_V8(24)
#define GB10_W80 GB10_W64, GB10_V8(32)
#define GB10_W96 GB10_W80, GB10_V8(40)
#define GB10_W112 GB10_W96, GB10_V8(48)
#define GB10_W128 GB10_W112, GB10_V8(56)
#define GB10_W144 GB10_W128, GB10_V8(64)
#define GB10_W160 GB10_W144, GB10_V8(72)
#define GB10_W176 GB10_W160, GB10_V8(80)
#define GB10_W192 GB10_W176, GB10_V8(88)
#define GB10_PRODUCT(N, A0, A1, A2, A3, B)                                                                                      \
  if constexpr (kColumns == N)                                                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" GB10_C##N "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 \
                                                                                      "}, %" #B ", 1, 1, 1, 0;"                 \
               : GB10_W##N                                                                                                      \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))

// bf16.
template <int kColumns>
__device__ __forceinline__ void product_m64k16(float (&c)[kColumns / 2], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                               std::uint32_t a3, std::uint64_t b) {
  static_assert(kColumns % 16 == 0 && kColumns >= 16 && kColumns <= 192);
#if GB10_HW_WARPGROUPS
  GB10_PRODUCT(16, 8, 9, 10, 11, 12);
  GB10_PRODUCT(32, 16, 17, 18, 19, 20);
  GB10_PRODUCT(48, 24, 25, 26, 27, 28);
  GB10_PRODUCT(64, 32, 33, 34, 35, 36);
  GB10_PRODUCT(80, 40, 41, 42, 43, 44);
  GB10_PRODUCT(96, 48, 49, 50, 51, 52);
  GB10_PRODUCT(112, 56, 57, 58, 59, 60);
  GB10_PRODUCT(128, 64, 65, 66, 67, 68);
  GB10_PRODUCT(144, 72, 73, 74, 75, 76);
  GB10_PRODUCT(160, 80, 81, 82, 83, 84);
  GB10_PRODUCT(176, 88, 89, 90, 91, 92);
  GB10_PRODUCT(192, 96, 97, 98, 99, 100);
#endif
}
#undef GB10_C16
#undef GB10_W16
#undef GB10_C32
#undef GB10_W32
#undef GB10_C48
#undef GB10_W48
#undef GB10_C64
#undef GB10_W64
#undef GB10_C80
#undef GB10_W80
#undef GB10_C96
#undef GB10_W96
#undef GB10_C112
#undef GB10_W112
#undef GB10_C128
#undef GB10_W128
#undef GB10_C144
#undef GB10_W144
#undef GB10_C160
#undef GB10_W160
#undef GB10_C176
#undef GB10_W176
#undef GB10_C192
#undef GB10_W192
#undef GB10_V8
#undef GB10_PRODUCT

}  // namespace gb10
