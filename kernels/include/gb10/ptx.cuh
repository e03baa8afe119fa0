// The instructions that the kernels write as PTX, a thin function each, overloaded by type. mma.cuh has the matrix instructions;
// no other file holds assembly, so a test without a GPU puts two other files in the place of these.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "gb10/arch.cuh"

#if defined(__CUDACC__)

namespace gb10::ptx {

// ---- Global memory

// What a grid reads once: wide loads leave L1 first, and L2 fetches 128 bytes.
__device__ __forceinline__ void load_weights(uint4& v, void const* address) {
  asm("ld.global.nc.L1::evict_first.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(address));
}
__device__ __forceinline__ void load_weights(uint2& v, void const* address) {
  asm("ld.global.nc.L1::evict_first.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
}
__device__ __forceinline__ void load_weights(std::uint32_t& v, void const* address) {
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(address));
}

// The same past L1, 256 bytes into L2, in the order of the program.
__device__ __forceinline__ void load_stream(uint4& v, void const* address) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
}

// Weights that a thread keeps over wait_for_previous(): unlike the loads above, the assembler leaves this one before the wait.
__device__ __forceinline__ void load_ahead(uint4& v, void const* address) {
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
}

__device__ __forceinline__ void load_ahead(uint2& v, void const* address) {
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
}
__device__ __forceinline__ void load_ahead(std::uint32_t& v, void const* address) {
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(address));
}

// What an earlier kernel wrote that has ended while later ones overlap: from L2.
__device__ __forceinline__ int load_relaxed(std::int32_t const* address) {
  int v;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}
__device__ __forceinline__ float load_relaxed(float const* address) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(address));
  return v;
}
__device__ __forceinline__ std::uint16_t load_relaxed(std::uint16_t const* address) {
  std::uint16_t v;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(address));
  return v;
}

// A hint: this line will be read. It is right whoever still writes there, and must be memory of this GPU.
__device__ __forceinline__ void ask_l2(void const* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
// What another block of this grid writes with store_relaxed, a word at a time.
__device__ __forceinline__ uint4 load_relaxed(uint4 const* address) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed(std::uint32_t* address, std::uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(v) : "memory");
}

// ---- Shared memory

// All that a launch asked for, at a multiple of 16 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

__device__ __forceinline__ std::uint32_t shared_address(void const* place) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(place));
}

// Copies to shared memory without waiting: through L2, 128 bytes at a time (weights); through L1 (4 bytes). With `valid`, zeros
// where it is false.
__device__ __forceinline__ void copy16(std::uint32_t to, void const* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy16(void* to, void const* from) { copy16(shared_address(to), from); }
__device__ __forceinline__ void copy16(void* to, void const* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy8(void* to, void const* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0) : "memory");
}
// Weights of rows that are read a part at a time: the rest of the line comes into L2 along.
__device__ __forceinline__ void copy16_of_line(void* to, void const* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy4(std::uint32_t to, void const* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy4(void* to, void const* from) { copy4(shared_address(to), from); }
__device__ __forceinline__ void copy4(void* to, void const* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0) : "memory");
}

// Ends a group of copies; waits for all groups but the newest kNewer.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kNewer>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewer) : "memory");
}

// ---- Threads and grids

// A barrier of `threads` threads, a multiple of 32, by its number: to arrive without waiting, and to arrive and wait.
__device__ __forceinline__ void barrier_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_wait(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// A barrier in shared memory (an mbarrier): `count` arrivals end a phase, the first one has parity 0. Waiting for the parity of the
// phase before the first returns at once.
__device__ __forceinline__ void begin_phases(std::uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive_at(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// The arrival is that of the copies of this thread so far: when they are there.
__device__ __forceinline__ void arrive_when_copied(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void wait_for_phase(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// What this thread has seen in shared memory, others' copies too, its matrix instructions see when they read there.
__device__ __forceinline__ void show_to_products() {
#if GB10_HW_WARPGROUPS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Registers of each thread of a warpgroup, from here on: fewer, or more when others have given theirs.
template <int kCount>
__device__ __forceinline__ void fewer_registers() {
#if GB10_HW_WARPGROUPS
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void more_registers() {
#if GB10_HW_WARPGROUPS
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// Clusters (9.0 and newer). A barrier of all threads of a cluster, in two parts; a thread's turns at them alternate, all lanes
// of a warp at once. It orders what has been read before with what is written after, and no writes: those would have to reach L2.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// Numbers sent to a block of the cluster, to the same place in its shared memory. One thread of that block says how many
// bytes will come, before an arrival at the cluster's barrier that the senders wait for; any thread of it waits for them, once.
__device__ __forceinline__ void expect_bytes(std::uint64_t* mail, int bytes) {
  std::uint32_t const address = shared_address(mail);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}
__device__ __forceinline__ void send(float* place, std::uint64_t* mail, int rank, float v) {
  std::uint32_t there, mail_there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(place)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mail_there) : "r"(shared_address(mail)), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(there), "f"(v), "r"(mail_there)
               : "memory");
}
__device__ __forceinline__ void wait_for_bytes(std::uint64_t* mail) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(mail))
      : "memory");
}

// Programmatic dependent launch (launch.cuh): returns when the kernels before have ended and their writes can be seen; lets the
// next kernel begin.
__device__ __forceinline__ void wait_for_previous() {
#if GB10_HW_DEPENDENTS
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void release_next() {
#if GB10_HW_DEPENDENTS
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Ends the grid with an error.
__device__ __forceinline__ void stop() { asm volatile("trap;"); }

// ---- Numbers

// Keeps a number in its register: the compiler would rather compute it anew in each turn of a loop.
__device__ __forceinline__ void keep(int& v) { asm volatile("" : "+r"(v)); }

__device__ __forceinline__ float larger_or_nan(float a, float b) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
__device__ __forceinline__ float power_of_2(float x) {  // within 2 units of the last place
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
__device__ __forceinline__ float reciprocal(float x) {  // within 1
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

__device__ __forceinline__ float inverse_root(float x) {  // within 2
  float out;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

#if GB10_HW_E4M3
// A number to E4M3, in the low byte.
__device__ __forceinline__ std::uint32_t to_e4m3(float x) {
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return pair;
}
// Two E4M3 bytes to two f16; four to four.
__device__ __forceinline__ std::uint32_t from_e4m3(std::uint16_t pair) {
  std::uint32_t out;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(pair));
  return out;
}
__device__ __forceinline__ void from_e4m3(std::uint32_t four, std::uint32_t& first, std::uint32_t& second) {
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(first), "=r"(second)
      : "r"(four));
}
#endif

#if GB10_HW_E2M1
// Eight numbers to E2M1, the first in the lowest bits; eight codes to f16, codes 2p and 2p + 1 in word p.
__device__ __forceinline__ std::uint32_t to_e2m1(float const (&v)[8]) {
  std::uint32_t word;
  asm("{\n"
      ".reg .b8 b0, b1, b2, b3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b0, %2, %1;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b1, %4, %3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b2, %6, %5;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b3, %8, %7;\n"
      "mov.b32 %0, {b0, b1, b2, b3};\n"
      "}"
      : "=r"(word)
      : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "f"(v[4]), "f"(v[5]), "f"(v[6]), "f"(v[7]));
  return word;
}
__device__ __forceinline__ void from_e2m1(std::uint32_t word, std::uint32_t (&out)[4]) {
  asm("{\n"
      ".reg .b8 b0, b1, b2, b3;\n"
      "mov.b32 {b0, b1, b2, b3}, %4;\n"
      "cvt.rn.f16x2.e2m1x2 %0, b0;\n"
      "cvt.rn.f16x2.e2m1x2 %1, b1;\n"
      "cvt.rn.f16x2.e2m1x2 %2, b2;\n"
      "cvt.rn.f16x2.e2m1x2 %3, b3;\n"
      "}"
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
      : "r"(word));
}
#endif

}  // namespace gb10::ptx

#endif
