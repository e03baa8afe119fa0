// In place of the kernels' gb10/ptx.cuh. Kernels run one after the other.
#pragma once

#include "block.h"

namespace gb10::ptx {

template <typename V>
void load_weights(V& v, void const* address) {
  std::memcpy(&v, address, sizeof v);
}
template <typename V>
void load_ahead(V& v, void const* address) {
  std::memcpy(&v, address, sizeof v);
}
template <typename V>
V load_relaxed(V const* address) {
  return *address;
}
inline void store_relaxed(std::uint32_t* address, std::uint32_t v) { *address = v; }

inline unsigned char* dynamic_shared() { return reinterpret_cast<unsigned char*>(host::shared_memory); }
inline std::uint32_t shared_address(void const* place) {
  return static_cast<std::uint32_t>(static_cast<unsigned char const*>(place) - dynamic_shared());
}

inline void copy16(void* to, void const* from, bool valid = true) { host::copy(to, from, 16, valid); }
inline void copy8(void* to, void const* from, bool valid) { host::copy(to, from, 8, valid); }
inline void copy16_of_line(void* to, void const* from, bool valid) { host::copy(to, from, 16, valid); }
inline void copy4(void* to, void const* from, bool valid = true) { host::copy(to, from, 4, valid); }
inline void copy16(std::uint32_t to, void const* from) { copy16(dynamic_shared() + to, from); }
inline void copy4(std::uint32_t to, void const* from) { copy4(dynamic_shared() + to, from); }
inline void end_copies() { host::end_copies(); }
template <int kNewer>
void wait_for_copies() {
  host::wait_for_copies(kNewer);
}

inline void ask_l2(void const*) {}
inline void cluster_arrive() { host::arrive_at_cluster(); }
inline void cluster_wait() { host::wait_for_cluster(); }
inline void expect_bytes(std::uint64_t* mail, int bytes) { *mail = bytes; }
inline void send(float* place, std::uint64_t* mail, int rank, float v) {
  *host::in_cluster(place, rank) = v;
  *host::in_cluster(mail, rank) -= sizeof v;
  ++host::steps;
}
inline void wait_for_bytes(std::uint64_t const* mail) {
  while (*const_cast<std::uint64_t const volatile*>(mail) != 0) host::yield();
  ++host::steps;
}
inline void barrier_arrive(int number, int threads) { host::arrive(number, threads); }
inline void barrier_wait(int number, int threads) { host::meet(number, threads); }
inline void begin_phases(std::uint64_t* barrier, int count) { host::begin_phases(barrier, count); }
inline void arrive_at(std::uint64_t* barrier) { host::arrive_at_phase(barrier); }
inline void arrive_when_copied(std::uint64_t* barrier) {
  host::end_copies();
  host::wait_for_copies(0);
  host::arrive_at_phase(barrier);
}
inline void wait_for_phase(std::uint64_t* barrier, int parity) { host::wait_for_phase(barrier, parity); }
inline void show_to_products() {}
template <int kCount>
void fewer_registers() {}
template <int kCount>
void more_registers() {}
inline void wait_for_previous() {}
inline void release_next() {}
inline void stop() {
  std::puts("a kernel stops itself");
  std::exit(5);
}
inline void keep(int&) {}
inline float power_of_2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float inverse_root(float x) { return 1.0f / std::sqrt(x); }

inline void from_e2m1(std::uint32_t word, std::uint32_t (&out)[4]) { host::unpack_e2m1(word, out); }
std::uint32_t to_e2m1(float const (&v)[8]);  // no kernel here encodes

}  // namespace gb10::ptx
