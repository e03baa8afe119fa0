// What the target of this compilation can do. One place decides; every kernel asks here.
//
// __CUDA_ARCH__ cannot tell the generic sm_120/sm_121 from sm_120f/sm_121a: both read 1200 or 1210. The FP4 conversions and the
// FP4 matrix instructions exist only for the arch- or family-specific targets, which nvcc marks with
// __CUDA_ARCH_SPECIFIC__ or __CUDA_ARCH_FAMILY_SPECIFIC__.
//
//   GB10_HW_E2M1        cvt between e2m1x2 and f32/f16x2 is one instruction (10.x, 11.x, 12.x specific targets)
//   GB10_HW_E4M3        cvt between e4m3x2 and f16x2 is one instruction (8.9 and newer)
//   GB10_HW_DEPENDENTS  griddepcontrol: programmatic dependent launch (9.0 and newer)
//   GB10_HW_WARPGROUPS  wgmma and setmaxnreg (9.0 alone, target sm_90a)
//
// Host code, and targets without an instruction, take the software route with the same results, bit for bit. A test without a
// GPU may define GB10_HW_E2M1 itself.
#pragma once

#if defined(GB10_HW_E2M1)
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000 && (defined(__CUDA_ARCH_SPECIFIC__) || defined(__CUDA_ARCH_FAMILY_SPECIFIC__))
#define GB10_HW_E2M1 1
#else
#define GB10_HW_E2M1 0
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define GB10_HW_E4M3 1
#else
#define GB10_HW_E4M3 0
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define GB10_HW_DEPENDENTS 1
#else
#define GB10_HW_DEPENDENTS 0
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GB10_HW_WARPGROUPS 1
#else
#define GB10_HW_WARPGROUPS 0
#endif

#if defined(__CUDACC__)
#define GB10_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GB10_HOST_DEVICE inline
#endif

// Before a loop with a constant count: unrolled for the GPU, left to the compiler on the host.
#if defined(__CUDA_ARCH__)
#define GB10_UNROLL _Pragma("unroll")
#else
#define GB10_UNROLL
#endif
