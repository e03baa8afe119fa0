// mma.sp::ordered_metadata.m16n8k32 with 16-bit numbers on the CPU, from the fragments and the sparse storage in the PTX manual.
#pragma once

#include "gb10/block.h"

namespace host {

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

}  // namespace host
