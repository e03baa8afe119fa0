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

// A stack of NVFP4 matrices [count][rows, k].
struct Matrix {
  std::uint8_t const* codes;   // [count][rows][k / 2]
  std::uint8_t const* scales;  // [count][scale_bytes], linear or swizzled
  float const* globals;        // [count][global_columns]
  std::int64_t scale_bytes;    // of one matrix
  int rows;
  int k;
  int global_columns;  // 1, or 2: gate, up
};

// A layer after routing, with an expert that all tokens have.
struct Layer : Routing, ActivationNumbers {
  void const* x;                  // [tokens, hidden]
  void const* shared_multiplier;  // [tokens]: float32, or as x when multiplier_as_x; nullptr: 1
  void* out;                      // [tokens, hidden]
  Matrix w13, w2;
  Matrix shared_w13, shared_w2;  // codes is nullptr without a shared expert
  bool gated, interleaved, up_first, multiplier_as_x;
};

}  // namespace gb10::moe
