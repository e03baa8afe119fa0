// What moe_decode needs on the CPU beyond block.h: operations of a whole warp, copies that take effect late, atomics.
#pragma once

#include <deque>

#include "gb10/block.h"

namespace host {

// What each lane of this warp gives.
template <typename V>
std::vector<V> gather(V v) {
  static V values[32][32];
  values[warp()][lane()] = v;
  meet_warp();
  std::vector<V> all(values[warp()], values[warp()] + 32);
  meet_warp();
  return all;
}

// An asynchronous copy to any address. Until it is waited for, its place holds NaN.
struct LateCopy {
  void* to;
  void const* from;
  int bytes;
  bool valid;
};
struct LateCopies {
  std::vector<LateCopy> open;
  std::deque<std::vector<LateCopy>> groups;
};
inline std::map<int, LateCopies> late_copies;  // by thread

inline void copy_late(void* to, void const* from, int bytes, bool valid) {
  std::memset(to, 0xFF, bytes);
  late_copies[current->number].open.push_back({to, from, bytes, valid});
}

}  // namespace host

inline int __popc(std::uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(std::uint32_t v) { return __builtin_ffs(static_cast<int>(v)); }
inline float __fdividef(float a, float b) { return a / b; }
inline std::uint32_t __float_as_uint(float v) { return host::same_bits<std::uint32_t>(v); }
inline std::uint32_t __ballot_sync(unsigned, bool vote) {
  std::uint32_t all = 0;
  int i = 0;
  for (int v : host::gather(int{vote})) all |= static_cast<std::uint32_t>(v) << i++;
  return all;
}
template <typename V>
V __shfl_sync(unsigned, V v, int from) {
  return host::gather(v)[from];
}
template <typename V>
V __shfl_xor_sync(unsigned, V v, int other) {
  return host::gather(v)[host::lane() ^ other];
}
template <typename V>
V __reduce_add_sync(unsigned, V v) {
  V out = 0;
  for (V other : host::gather(v)) out += other;
  return out;
}
inline std::uint32_t __match_any_sync(unsigned, int v) {
  std::uint32_t all = 0;
  int i = 0;
  for (int other : host::gather(v)) all |= static_cast<std::uint32_t>(other == v) << i++;
  return all;
}
inline void atomicOr(std::uint32_t* to, std::uint32_t v) { *to |= v; }
inline void atomicMax(std::uint32_t* to, std::uint32_t v) { *to = std::max(*to, v); }
#undef __grid_constant__
#define __grid_constant__
