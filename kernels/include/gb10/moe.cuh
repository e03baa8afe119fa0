// The front of a mixture-of-experts kernel: the expert behind an id, and the activation.
//
// Ids, weights and the map were written by kernels that have ended when these functions run, while later kernels may overlap: they
// are read from L2 (ptx::load_relaxed).
#pragma once

#include "gb10/moe.h"
#include "gb10/ptx.cuh"

namespace gb10::moe {

// The id of a (token, slot) pair as it is stored: an int64 in two words, an int32 with 0 above it.
struct RawId {
  int low, high;
};
__device__ __forceinline__ RawId raw_id(Routing const& r, int pair) {
  std::int32_t const* const words = static_cast<std::int32_t const*>(r.ids) + (pair << (r.wide_ids ? 1 : 0));
  RawId id{ptx::load_relaxed(words), 0};
  if (r.wide_ids) id.high = ptx::load_relaxed(words + 1);
  return id;
}

// The local expert that an id names, or -1.
__device__ __forceinline__ int local_expert(Routing const& r, RawId id) {
  int const named = id.high == 0 && id.low >= 0 && id.low < (r.expert_map ? r.map_size : r.experts) ? id.low : -1;
  if (!r.expert_map || named < 0) return named;
  int const local = ptx::load_relaxed(r.expert_map + named);
  return local >= 0 && local < r.experts ? local : -1;
}

// NaN stays NaN in both.
__device__ __forceinline__ float at_most(float v, float limit) { return v > limit ? limit : v; }
__device__ __forceinline__ float at_least(float v, float limit) { return v < limit ? limit : v; }

// gate is the only input of activations without gate; up is 1 then. With kThree only the first three activations exist and
// quotients are rounded to nearest; else quotients are within two units of the last place.
template <bool kThree = false>
__device__ __forceinline__ float activate(ActivationNumbers const& a, float gate, float up) {
  auto const divide = [](float x, float y) { return kThree ? x / y : __fdividef(x, y); };
  if (a.activation == Activation::kSwish) {
    gate = at_most(gate, a.limit);
    up = at_least(at_most(up, a.limit), -a.limit) + a.beta;
    return divide(gate, 1.0f + expf(-a.alpha * gate)) * up;
  }
  if (a.activation == Activation::kGelu) return 0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)) * up;
  if (kThree || a.activation == Activation::kGeluTanh) {
    return 0.5f * gate * (1.0f + tanhf(0.79788456080286536f * (gate + 0.044715f * gate * gate * gate))) * up;
  }
  if (a.activation == Activation::kRelu2) {
    float const positive = at_least(gate, 0.0f);
    return positive * positive * up;
  }
  if (a.activation == Activation::kSwigluStep) {
    return at_most(divide(gate, 1.0f + expf(-gate)), a.limit) * at_least(at_most(up, a.limit), -a.limit);
  }
  // kSitu: alpha bounds the gate; beta, if positive, bounds up.
  gate = divide(a.alpha * tanhf(divide(gate, a.alpha)), 1.0f + expf(-gate));
  return gate * (a.beta > 0.0f ? a.beta * tanhf(divide(up, a.beta)) : up);
}

}  // namespace gb10::moe
