// Runs CUDA blocks on the CPU, one after another, or those of a cluster together, so that a kernel's indices can be tested without a GPU. Each thread is a fiber; threads meet in
// barriers and in the matrix instruction. A random warp runs until it has to wait, then the next: one warp may be far ahead of
// another, as far as the barriers let it. Shared memory begins as NaN: a read of what nobody wrote shows in the result.
// gb10/ptx.cuh and gb10/mma.cuh in this folder stand in front of the kernels' own; all else of them is compiled as it is.
#pragma once

// With it glibc takes the jump from one stack to another for a fault.
#undef _FORTIFY_SOURCE

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace host {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};
inline Index thread, block, block_size, grid_size;
inline uint4* shared_memory = nullptr;
inline std::vector<std::vector<uint4>> cluster_memory;  // of the blocks that run
inline std::vector<char> begun;                         // which of them have

struct Fiber {
  ucontext_t context;  // of its beginning
  jmp_buf place;       // where it goes on
  std::vector<char> stack;
  Index thread, block;
  int rank, number;  // of its block in the cluster; of the thread, over all blocks of the cluster
  bool started = false, done = false;
};
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<std::unique_ptr<Fiber>> spare;  // those of earlier blocks: a stack is dear to make
inline jmp_buf scheduler;
inline Fiber* current = nullptr;
inline std::function<void()> body;

// Jumps, because swapcontext asks the system for the signal mask each time.
[[gnu::noinline]] inline void yield() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}
[[gnu::noinline]] inline void go_on() {
  if (_setjmp(scheduler) != 0) return;
  if (current->started) _longjmp(current->place, 1);
  current->started = true;
  setcontext(&current->context);
}

// A barrier with a number, for so many threads.
struct Barrier {
  int arrived = 0;
  long round = 0;
};
inline std::map<int, Barrier> barriers;
inline long steps = 0;  // arrivals at barriers and ends of threads

// Barriers with a number are a block's own.
inline int own(int number) { return number + 1000 * current->rank; }

inline void meet_in_cluster(int number, int threads) {
  Barrier& barrier = barriers[number];
  long const round = barrier.round;
  ++steps;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  while (barrier.round == round) yield();
}
inline void meet(int number, int threads) { meet_in_cluster(own(number), threads); }
// Arrives at a barrier without waiting for it.
inline void arrive(int number, int threads) {
  Barrier& barrier = barriers[own(number)];
  ++steps;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.round;
  }
}
inline int lane() { return current->number % 32; }
inline int warp() { return current->number / 32; }
inline void meet_block() { meet(999, static_cast<int>(fibers.size() / cluster_memory.size())); }
inline void meet_warp() { meet_in_cluster(-1 - warp(), 32); }

// The barrier of a cluster in its two parts. A thread that arrives twice without waiting is wrong.
inline constexpr int kClusterBarrier = 1 << 30;
inline std::map<int, long> cluster_rounds;  // that a thread has arrived for, by thread
inline bool rests = false;                  // after an arrival another warp's turn comes: this one may fall far behind
inline void arrive_at_cluster() {
  Barrier& barrier = barriers[kClusterBarrier];
  if (!cluster_rounds.emplace(current->number, barrier.round).second) {
    std::puts("a thread arrives twice at the barrier of its cluster");
    std::exit(5);
  }
  ++steps;
  if (++barrier.arrived == static_cast<int>(fibers.size())) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  rests = true;
  yield();
}
inline void wait_for_cluster() {
  auto const mine = cluster_rounds.find(current->number);
  if (mine == cluster_rounds.end()) {
    std::puts("a thread waits at the barrier of its cluster where it has not arrived");
    std::exit(5);
  }
  while (barriers[kClusterBarrier].round == mine->second) yield();
  cluster_rounds.erase(mine);
  ++steps;
}
// The same place in the shared memory of a block of the cluster, which must have begun.
template <typename V>
V* in_cluster(V* place, int rank) {
  if (!begun[rank]) {
    std::puts("a thread writes to the shared memory of a block that has not begun");
    std::exit(5);
  }
  auto const offset = reinterpret_cast<char*>(place) - reinterpret_cast<char*>(shared_memory);
  return reinterpret_cast<V*>(reinterpret_cast<char*>(cluster_memory[rank].data()) + offset);
}

inline void start() {
  begun[current->rank] = true;
  body();
  current->done = true;
  ++steps;
  yield();
}

// An asynchronous copy. Until its group is waited for, its place holds NaN.
struct Copy {
  void* to;
  void const* from;
  int bytes;
  bool valid;  // else zeros
};
struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
inline std::map<int, Copies> copies;  // by thread

inline void copy(void* to, void const* from, int bytes, bool valid) {
  std::memset(to, 0xFF, bytes);
  copies[current->number].open.push_back({to, from, bytes, valid});
}
inline void end_copies() {
  auto& [open, groups] = copies[current->number];
  groups.push_back(std::move(open));
  open.clear();
}
inline void wait_for_copies(std::size_t newer) {
  auto& groups = copies[current->number].groups;
  for (; groups.size() > newer; groups.pop_front()) {
    for (Copy const& c : groups.front()) {
      if (c.valid) std::memcpy(c.to, c.from, c.bytes);
      else std::memset(c.to, 0, c.bytes);
    }
  }
}

// wgmma.mma_async m64nNk16 with a in registers and b [column][64 k] in shared memory, 128-byte swizzle: what a warp does of it for its
// own rows. It reads b when it is waited for, the latest time that it may.
struct Product {
  float* c;
  int columns;
  std::array<std::uint32_t, 4> a;
  std::uint64_t b;  // where it begins in shared memory, in units of 16 bytes
};
struct Products {
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
};
inline std::map<int, Products> products;  // by thread
inline void run_cluster(Index first, unsigned blocks, std::size_t shared_bytes) {
  cluster_memory.assign(blocks, std::vector<uint4>(shared_bytes / 16));
  for (auto& memory : cluster_memory) std::memset(memory.data(), 0xFF, shared_bytes);
  begun.assign(blocks, false);
  barriers.clear();
  cluster_rounds.clear();
  copies.clear();
  products.clear();
  std::move(fibers.begin(), fibers.end(), std::back_inserter(spare));
  fibers.clear();
  unsigned const threads = block_size.x * block_size.y;
  for (unsigned i = 0; i < blocks * threads; ++i) {
    if (spare.empty()) {
      spare.push_back(std::make_unique<Fiber>());
      spare.back()->stack.resize(64 * 1024);
    }
    auto fiber = std::move(spare.back());
    spare.pop_back();
    fiber->started = fiber->done = false;
    fiber->thread = {i % threads % block_size.x, i % threads / block_size.x, 0};
    fiber->block = {first.x + i / threads, first.y, first.z};
    fiber->rank = static_cast<int>(i / threads);
    fiber->number = static_cast<int>(i);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.data();
    fiber->context.uc_stack.ss_size = fiber->stack.size();
    makecontext(&fiber->context, start, 0);
    fibers.push_back(std::move(fiber));
  }
  static std::mt19937 dice(2);
  std::size_t const warps = fibers.size() / 32;
  for (int idle = 0; idle < static_cast<int>(500 * blocks);) {
    std::size_t const first_lane = dice() % warps * 32;
    long before = steps - 1, began = steps;
    rests = false;
    while (steps != before && !rests) {
      before = steps;
      for (std::size_t i = first_lane; i < first_lane + 32; ++i) {
        if (fibers[i]->done) continue;
        current = fibers[i].get();
        thread = current->thread;
        block = current->block;
        shared_memory = cluster_memory[current->rank].data();
        go_on();
      }
    }
    idle = steps == began ? idle + 1 : 0;
  }
  for (auto const& fiber : fibers) {
    if (!fiber->done) {
      std::puts("threads wait for each other without end");
      std::exit(3);
    }
  }
}

// `cluster` neighbours along x run together.
inline void run(Index grid, Index size, std::size_t shared_bytes, std::function<void()> kernel, unsigned cluster = 1) {
  body = std::move(kernel);
  grid_size = grid;
  block_size = size;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += cluster) run_cluster({x, y, z}, cluster, shared_bytes);
    }
  }
}

template <typename T>
float half_of(std::uint32_t word, int half) {
  std::uint16_t const bits = static_cast<std::uint16_t>(word >> (16 * half));
  T value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

// mma.sync.m16n8k16, from the table of fragments in the PTX manual.
struct Operands {
  std::uint32_t a[4], b[2];
};
inline Operands operands[32 * 32];

template <typename T>
void mma(float (&c)[4], Operands const& mine) {
  Operands* const all = operands + 32 * warp();
  all[lane()] = mine;
  meet_warp();
  int const g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    int const lower = i / 2, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      int const owner = k % 8 / 2, upper = k / 8;
      sum +=
          double{half_of<T>(all[4 * g + owner].a[lower + 2 * upper], k % 2)} * half_of<T>(all[4 * column + owner].b[upper], k % 2);
    }
    c[i] = static_cast<float>(sum);
  }
  meet_warp();
}

// mma.sp::ordered_metadata.m16n8k32, from the fragments and the sparse storage there.
struct SparseOperands {
  std::uint32_t a[4];
  uint4 b;
  std::uint32_t metadata;
};
inline SparseOperands sparse_operands[32 * 32];

template <typename T>
void mma_sp(float (&c)[4], std::uint32_t const (&a)[4], uint4 b, std::uint32_t metadata, int selector) {
  SparseOperands* const all = sparse_operands + 32 * warp();
  all[lane()] = {{a[0], a[1], a[2], a[3]}, b, metadata};
  meet_warp();
  int const g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    int const lower = i / 2, column = 2 * t + i % 2;
    double sum = c[i];
    for (int group = 0; group < 8; ++group) {
      std::uint32_t const kept = all[4 * g + group % 4].a[lower + group / 4 * 2];
      std::uint32_t const pair = all[4 * g + 2 * selector + group / 4].metadata >> (16 * lower + 4 * (group % 4)) & 15;
      if ((pair & 3) >= pair >> 2) {
        std::puts("positions are not in increasing order");
        std::exit(4);
      }
      for (int e = 0; e < 2; ++e) {
        int const k = 4 * group + (pair >> 2 * e & 3);
        uint4 const& v = all[4 * column + k % 8 / 2].b;
        std::uint32_t const words[4] = {v.x, v.y, v.z, v.w};
        sum += double{half_of<T>(kept, e)} * half_of<T>(words[k / 8], k % 2);
      }
    }
    c[i] = static_cast<float>(sum);
  }
  meet_warp();
}

// A barrier with phases in shared memory: arrivals still to come, all of a phase, and the phase's parity.
struct Phases {
  std::uint16_t missing, count, parity, unused;
};
inline void begin_phases(std::uint64_t* place, int count) {
  Phases const phases{static_cast<std::uint16_t>(count), static_cast<std::uint16_t>(count), 0, 0};
  std::memcpy(place, &phases, sizeof phases);
}
inline void arrive_at_phase(std::uint64_t* place) {
  Phases phases;
  std::memcpy(&phases, place, sizeof phases);
  if (--phases.missing == 0) phases.missing = phases.count, phases.parity ^= 1;
  std::memcpy(place, &phases, sizeof phases);
  ++steps;
}
inline void wait_for_phase(std::uint64_t const* place, int parity) {
  for (Phases phases;; yield()) {
    std::memcpy(&phases, place, sizeof phases);
    if (phases.parity != parity) break;
  }
  ++steps;
}

inline void product(float* c, int columns, std::array<std::uint32_t, 4> a, std::uint64_t b) {
  products[current->number].open.push_back({c, columns, a, b});
}
inline void end_products() {
  auto& [open, groups] = products[current->number];
  groups.push_back(std::move(open));
  open.clear();
}
inline std::array<std::uint32_t, 4> fragments[32 * 32];
inline void finish(Product const& p) {
  auto* const all = fragments + 32 * warp();
  all[lane()] = p.a;
  meet_warp();
  auto const* const memory = reinterpret_cast<unsigned char const*>(shared_memory);
  int const g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < p.columns / 2; ++i) {
    int const lower = i % 4 / 2, column = i / 4 * 8 + 2 * t + i % 2;
    double sum = p.c[i];
    for (int k = 0; k < 16; ++k) {
      std::uint64_t const place = 16 * p.b + column * 128 + 2 * k;
      std::uint64_t const swizzled = place ^ (place >> 7 & 7) << 4;
      __nv_bfloat16 b;
      std::memcpy(&b, memory + swizzled, 2);
      sum += double{half_of<__nv_bfloat16>(all[4 * g + k % 8 / 2][lower + 2 * (k / 8)], k % 2)} * float(b);
    }
    p.c[i] = static_cast<float>(sum);
  }
  meet_warp();
}
inline void wait_for_products(std::size_t newer) {
  auto& groups = products[current->number].groups;
  for (; groups.size() > newer; groups.pop_front()) {
    for (Product const& p : groups.front()) finish(p);
  }
}

inline std::uint32_t byte_perm(std::uint32_t x, std::uint32_t y, std::uint32_t selector) {
  std::uint64_t const bytes = std::uint64_t{y} << 32 | x;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= (bytes >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  return out;
}

// What each lane of this warp gives.
template <typename V>
std::array<V, 32> gather(V v) {
  static V values[128][32];
  values[warp()][lane()] = v;
  meet_warp();
  std::array<V, 32> all;
  std::copy_n(values[warp()], 32, all.begin());
  meet_warp();
  return all;
}

// Bit i: what flag(i) is for the number of lane i.
template <typename V, typename Flag>
std::uint32_t bits(V v, Flag&& flag) {
  std::uint32_t all = 0;
  auto const given = gather(v);
  for (int i = 0; i < 32; ++i) all |= std::uint32_t{flag(given[i])} << i;
  return all;
}

inline std::uint32_t max_of_halves(std::uint32_t a, std::uint32_t b) {
  std::uint32_t const low = (a & 0xFFFF) > (b & 0xFFFF) ? a & 0xFFFF : b & 0xFFFF;
  return low | ((a >> 16) > (b >> 16) ? a >> 16 : b >> 16) << 16;
}

template <typename To, typename From>
To same_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// cvt.rn.f16x2.e2m1x2 of the four bytes of a word.
inline void unpack_e2m1(std::uint32_t q, std::uint32_t (&out)[4]) {
  constexpr float magnitude[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int i = 0; i < 8; ++i) {
    int const code = q >> (4 * i) & 15;
    __half const value(code & 8 ? -magnitude[code & 7] : magnitude[code & 7]);
    std::uint16_t bits;
    std::memcpy(&bits, &value, 2);
    out[i / 2] = i % 2 == 0 ? bits : out[i / 2] | std::uint32_t{bits} << 16;
  }
}

}  // namespace host

template <typename T>
T max(T a, T b) {
  return a > b ? a : b;
}
inline std::uint32_t min(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }

inline int __popc(std::uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(std::uint32_t v) { return __builtin_ffs(static_cast<int>(v)); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __expf(float v) { return std::exp(v); }
inline std::uint32_t __float_as_uint(float v) { return host::same_bits<std::uint32_t>(v); }
inline std::uint32_t __ballot_sync(unsigned, bool vote) {
  return host::bits(vote, [](bool v) { return v; });
}
inline std::uint32_t __match_any_sync(unsigned, int v) {
  return host::bits(v, [v](int other) { return other == v; });
}
template <typename V>
V __shfl_sync(unsigned, V v, int from) {
  return host::gather(v)[from];
}
template <typename V>
V __shfl_xor_sync(unsigned, V v, int other) {
  return host::gather(v)[host::lane() ^ other];
}
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
template <typename V>
V __reduce_add_sync(unsigned, V v) {
  V out = 0;
  for (V other : host::gather(v)) out += other;
  return out;
}
inline std::uint32_t __reduce_max_sync(unsigned, std::uint32_t v) {
  auto const all = host::gather(v);
  return *std::max_element(all.begin(), all.end());
}
inline void atomicOr(std::uint32_t* to, std::uint32_t v) { *to |= v; }
inline int atomicAdd(int* to, int v) { return std::exchange(*to, *to + v); }
inline void atomicMax(std::uint32_t* to, std::uint32_t v) { *to = std::max(*to, v); }
template <typename T>
T __ldcg(T const* address) {
  return *address;
}
template <typename T>
T __ldg(T const* address) {
  return *address;
}

#define threadIdx host::thread
#define blockIdx host::block
#define blockDim host::block_size
#define gridDim host::grid_size
#define __byte_perm host::byte_perm
#define __vmaxu2 host::max_of_halves
#define __uint_as_float host::same_bits<float, std::uint32_t>
#define __syncthreads host::meet_block
#define __syncwarp host::meet_warp
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
