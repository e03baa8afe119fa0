// What the kernels for a mixture-of-experts layer after routing take alike. Host code; moe.cuh has what they do with it.
#pragma once

#include <cstdint>

namespace gb10::moe {

inline constexpr int kMaxTopk = 32;

enum class Activation : int { kSwish, kGelu, kGeluTanh, kRelu2, kSwigluStep, kSitu };

// See gb10.kernels.moe_decode.activation_numbers.
struct ActivationNumbers {
  Activation activation;
  float limit, alpha, beta;
};

// Which experts each token chose. The expert of a (token, slot) pair is ids[token, slot], looked up in expert_map if there is one;
// it is none when the id is negative, out of range, or mapped to no local expert.
struct Routing {
  void const* ids;                 // [tokens, topk] int32, or int64 when wide_ids
  float const* weights;            // [tokens, topk]
  std::int32_t const* expert_map;  // [map_size] to a local expert or -1; nullptr: ids are local
  int tokens, topk, experts, map_size;
  bool wide_ids;
  bool router_weight_on_input;  // the weights multiply gate and up, before the activation, and not the output

  // The same for `count` tokens from `first` on.
  Routing part(int first, int count) const {
    Routing some = *this;
    some.ids = static_cast<std::uint8_t const*>(ids) + static_cast<std::int64_t>(first) * topk * (wide_ids ? 8 : 4);
    some.weights = weights + static_cast<std::int64_t>(first) * topk;
    some.tokens = count;
    return some;
  }
};

}  // namespace gb10::moe
