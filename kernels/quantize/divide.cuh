// Division by one number that many are divided by: two instructions each, and every decision that NVFP4 takes on the quotient
// is that of the correctly rounded one.
//
// 1 / s is kept as high + low, where high is not above 1 / s. The quotient is fma(x, high, x * low). It is not the correctly
// rounded quotient in each last bit. But against every number with five significant bits (k / 16 times a power of two) it
// compares as the correctly rounded quotient does, less, equal or greater, for each x and each s that is not `awkward`. The
// places where E2M1 and UE4M3 round from one code to the next are such numbers. tests/kernels checks this for all 2^23
// mantissas of s, all 16 mantissas of the number and each x within three units of the product, for any estimate of 1 / s that is
// within one unit of the last place (rcp.approx is). For a larger distance the error of 2^-22 at most cannot change an order.
//
// It holds while nothing overflows or leaves the normal range: s within 2^-80..2^80, |x / s| below 2^40. The sign of the
// quotient is that of x also for zeros, as low is not negative.
#pragma once

#include <cstdint>

#include "gb10/arch.cuh"
#include "gb10/e2m1.cuh"
#include "gb10/ptx.cuh"

namespace gb10::quantize {

// The divisors with a wrong decision have the mantissas 0x5FFFFD, 0x5FFFFE and 0x7FFFFF; this is true for 16 of the 2^23.
GB10_HOST_DEVICE bool awkward(float s) { return (e2m1::bits_of(s) & 0x1FFFFCu) == 0x1FFFFCu; }

// a * b + c, rounded down.
GB10_HOST_DEVICE float fma_down(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rd(a, b, c);
#else
  double const product = static_cast<double>(a) * b;  // exact
  double const sum = product + c;
  double const part = sum - product;
  double const error = (product - (sum - part)) + (c - part);
  float const rounded = static_cast<float>(sum);
  bool const above = rounded > sum || (rounded == sum && error < 0);
  return above ? e2m1::float_of(e2m1::bits_of(rounded) - 1) : rounded;  // for the positive results asked for here
#endif
}

GB10_HOST_DEVICE float fma_nearest(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

GB10_HOST_DEVICE float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

struct Reciprocal {
  float high, low;
};

GB10_HOST_DEVICE Reciprocal reciprocal(float s, float estimate) {
  float const high = fma_down(fma_nearest(-s, estimate, 1.0f), estimate, estimate);
  return {high, multiply(high, fma_nearest(-s, high, 1.0f))};
}

GB10_HOST_DEVICE Reciprocal reciprocal(float s) {
#if defined(__CUDA_ARCH__)
  return reciprocal(s, ptx::reciprocal(s));
#else
  return reciprocal(s, 1.0f / s);
#endif
}

GB10_HOST_DEVICE float divide(float x, Reciprocal const& by) { return fma_nearest(x, by.high, multiply(x, by.low)); }

}  // namespace gb10::quantize
