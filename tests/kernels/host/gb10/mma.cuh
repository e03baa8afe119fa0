// In place of the kernels' gb10/mma.cuh.
#pragma once

#include "block.h"

namespace gb10 {

template <typename T>
void mma_m16n8k16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                  std::uint32_t b1) {
  host::mma<T>(c, {{a0, a1, a2, a3}, {b0, b1}});
}

template <int kSelector>
void mma_sp_m16n8k32(float (&c)[4], std::uint32_t const (&a)[4], uint4 b, std::uint32_t metadata) {
  host::mma_sp<__half>(c, a, b, metadata, kSelector);
}

inline std::uint64_t b_of_swizzled(std::uint32_t address) { return address / 16; }
inline void begin_products() {}
inline void end_products() { host::end_products(); }
template <int kNewer>
void wait_for_products() {
  host::wait_for_products(kNewer);
}
template <int kCount>
void take_sums(float (&)[kCount]) {}
template <int kColumns>
void product_m64k16(float (&c)[kColumns / 2], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                    std::uint64_t b) {
  host::product(c, kColumns, {a0, a1, a2, a3}, b);
}

}  // namespace gb10
