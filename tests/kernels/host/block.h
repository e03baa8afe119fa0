// Runs a CUDA block on the CPU, so that a kernel's indices can be tested without a GPU. Each thread is a fiber; threads meet in
// barriers and in the matrix instruction. A random warp runs until it has to wait, then the next: one warp may be far ahead of
// another, as far as the barriers let it. Shared memory begins as NaN: a read of what nobody wrote shows in the result.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

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

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Index thread;
  int number;
  bool done = false;
};
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline std::function<void()> body;

inline void yield() { swapcontext(&current->context, &scheduler); }

// A barrier with a number, for so many threads.
struct Barrier {
  int arrived = 0;
  long round = 0;
};
inline std::map<int, Barrier> barriers;
inline long steps = 0;  // arrivals at barriers and ends of threads

inline void meet(int number, int threads) {
  Barrier& barrier = barriers[number];
  long const round = barrier.round;
  ++steps;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  while (barrier.round == round) yield();
}
// Arrives at a barrier without waiting for it.
inline void arrive(int number, int threads) {
  Barrier& barrier = barriers[number];
  ++steps;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.round;
  }
}
inline int lane() { return current->number % 32; }
inline int warp() { return current->number / 32; }
inline void meet_block() { meet(-1, static_cast<int>(fibers.size())); }
inline void meet_warp() { meet(-2 - warp(), 32); }

inline void start() {
  body();
  current->done = true;
  ++steps;
  yield();
}

// Copies to shared memory that are done late: when the group that they belong to is waited for.
struct Copy {
  std::uint32_t to;
  void const* from;
  int bytes;
};
inline std::map<int, std::vector<std::vector<Copy>>> copies;  // by thread: groups, the open one last

inline void run(Index grid, Index size, std::size_t shared_bytes, std::function<void()> kernel) {
  body = std::move(kernel);
  grid_size = grid;
  block_size = size;
  for (unsigned b = 0; b < grid.x; ++b) {
    block = {b, 0, 0};
    std::vector<uint4> memory(shared_bytes / 16);
    std::memset(memory.data(), 0xFF, shared_bytes);
    shared_memory = memory.data();
    barriers.clear();
    copies.clear();
    fibers.clear();
    for (unsigned i = 0; i < size.x * size.y; ++i) {
      auto fiber = std::make_unique<Fiber>();
      fiber->stack.resize(64 * 1024);
      fiber->thread = {i % size.x, i / size.x, 0};
      fiber->number = static_cast<int>(i);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.data();
      fiber->context.uc_stack.ss_size = fiber->stack.size();
      makecontext(&fiber->context, start, 0);
      fibers.push_back(std::move(fiber));
    }
    static std::mt19937 dice(2);
    std::size_t const warps = fibers.size() / 32;
    for (int idle = 0; idle < 500;) {
      std::size_t const first = dice() % warps * 32;
      long before = steps - 1, began = steps;
      while (steps != before) {
        before = steps;
        for (std::size_t i = first; i < first + 32; ++i) {
          if (fibers[i]->done) continue;
          current = fibers[i].get();
          thread = current->thread;
          swapcontext(&scheduler, &current->context);
        }
      }
      idle = steps == began ? idle + 1 : 0;
    }
    for (auto const& fiber : fibers) {
      if (!fiber->done) {
        std::puts("the threads of a block wait for each other without end");
        std::exit(3);
      }
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
      sum += double{half_of<T>(all[4 * g + owner].a[lower + 2 * upper], k % 2)} *
             half_of<T>(all[4 * column + owner].b[upper], k % 2);
    }
    c[i] = static_cast<float>(sum);
  }
  meet_warp();
}

inline std::uint32_t byte_perm(std::uint32_t x, std::uint32_t y, std::uint32_t selector) {
  std::uint64_t const bytes = std::uint64_t{y} << 32 | x;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= (bytes >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  return out;
}

// The largest value of a warp.
inline std::uint32_t largest[32 * 32];
inline std::uint32_t reduce_max(unsigned, std::uint32_t value) {
  std::uint32_t* const all = largest + 32 * warp();
  all[lane()] = value;
  meet_warp();
  std::uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result = all[i] > result ? all[i] : result;
  meet_warp();
  return result;
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

inline void copy(std::uint32_t to, void const* from, int bytes) {
  auto& groups = copies[current->number];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, bytes});
}
inline void end_of_copies() {
  auto& groups = copies[current->number];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}
inline void wait_for_copies(std::size_t newer) {
  auto& groups = copies[current->number];
  while (groups.size() > newer + 1) {
    for (Copy const& copy : groups.front()) {
      std::memcpy(reinterpret_cast<char*>(shared_memory) + copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}
inline std::uint32_t shared_address(void const* place) {
  return static_cast<std::uint32_t>(static_cast<char const*>(place) - reinterpret_cast<char const*>(shared_memory));
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

#define threadIdx host::thread
#define blockIdx host::block
#define blockDim host::block_size
#define gridDim host::grid_size
#define __byte_perm host::byte_perm
#define __reduce_max_sync host::reduce_max
#define __vmaxu2 host::max_of_halves
#define __uint_as_float host::same_bits<float, std::uint32_t>
#define __cvta_generic_to_shared host::shared_address
#define __syncthreads host::meet_block
#define __syncwarp host::meet_warp
#undef __launch_bounds__
#define __launch_bounds__(...)
