// In place of moe_decode/ptx.cuh.
#pragma once

#include "moe_host.h"

namespace gb10::moe_decode {

inline void keep(int&) {}
template <typename V>
V load_relaxed(V const* address) {
  return *address;
}
inline void copy16(void* to, void const* from, bool valid) { host::copy_late(to, from, 16, valid); }
inline void copy4(void* to, void const* from, bool valid) { host::copy_late(to, from, 4, valid); }
inline void copy_weights(void* to, void const* from) { host::copy_late(to, from, 16, true); }
inline void copy_scales(void* to, void const* from) { host::copy_late(to, from, 4, true); }
inline void end_copies() {
  auto& [open, groups] = host::late_copies[host::current->number];
  groups.push_back(std::move(open));
  open.clear();
}
template <int kOpen>
void wait_for_copies() {
  auto& groups = host::late_copies[host::current->number].groups;
  for (; groups.size() > kOpen; groups.pop_front()) {
    for (host::LateCopy const& c : groups.front()) {
      if (c.valid) std::memcpy(c.to, c.from, c.bytes);
      else std::memset(c.to, 0, c.bytes);
    }
  }
}
inline void barrier_wait(int number, int threads) { host::meet(number, threads); }
inline void barrier_arrive(int number, int threads) { host::arrive(number, threads); }

}  // namespace gb10::moe_decode
