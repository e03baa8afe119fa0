// The numbers that kernels take and give. Host code; types.cuh has what the kernels do with them.
#pragma once

namespace gb10 {

enum class Number { kBFloat16, kFloat16, kFloat32 };

inline constexpr int kMaxTokens = 16;  // of a decode kernel: two groups of the 8 columns of a matrix instruction

}  // namespace gb10
