// What several operators check of their arguments' shapes and numbers, each in one place and in the same words.
#pragma once

#include <array>
#include <cmath>
#include <limits>

#include "gb10/moe.h"
#include "gb10/torch_op.h"

namespace gb10::torch_op {

inline constexpr std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

inline void check_one(char const* op, char const* name, Tensor const& tensor) {
  require(tensor.numel() == 1, op, std::string(name) + " has shape " + shape_of(tensor) + "; it must have one element");
}

// x is [tokens, any], with 1 to `most` tokens.
inline std::int64_t check_tokens(char const* op, Tensor const& x, std::int64_t most = kMaxTokens) {
  check_shape(op, "x", x, {-1, -1});
  require(x.size(0) >= 1 && x.size(0) <= most, op,
          "x has " + std::to_string(x.size(0)) + " rows (tokens); it must have 1 to " + std::to_string(most));
  return x.size(0);
}

// K: the columns of x.
inline std::int64_t check_columns(char const* op, Tensor const& x, std::int64_t unit, std::int64_t most) {
  std::int64_t const columns = x.size(1);
  require(columns >= unit && columns % unit == 0 && columns <= most, op,
          "x has " + std::to_string(columns) + " columns (K); K must be a multiple of " + std::to_string(unit) + ", at most " +
              std::to_string(most));
  return columns;
}

// hidden or intermediate of an MoE layer.
inline void check_width(char const* op, char const* what, std::int64_t width, std::int64_t unit, std::int64_t most) {
  require(width >= unit && width % unit == 0 && width <= most, op,
          std::string(what) + " is " + std::to_string(width) + "; it must be a multiple of " + std::to_string(unit) + ", at most " +
              std::to_string(most));
}

// topk_ids and topk_weights are [tokens, topk], expert_map is [any]; their dtypes have been checked.
inline moe::Routing check_routing(char const* op, Tensor const& ids, Tensor const& weights, std::optional<Tensor> const& map,
                                  std::int64_t tokens, std::int64_t experts, bool router_weight_on_input) {
  check_shape(op, "topk_ids", ids, {tokens, -1});
  std::int64_t const topk = ids.size(1);
  require(topk >= 1 && topk <= moe::kMaxTopk, op,
          "topk_ids has " + std::to_string(topk) + " columns (topk); it must have 1 to " + std::to_string(moe::kMaxTopk));
  check_shape(op, "topk_weights", weights, {tokens, topk});
  if (map) check_shape(op, "expert_map", *map, {-1});
  require(!map || (map->numel() >= 1 && map->numel() <= std::numeric_limits<std::int32_t>::max()), op,
          "expert_map has " + std::to_string(map ? map->numel() : 0) + " entries; it must have at least one");
  return {ids.data_ptr(),
          static_cast<float const*>(weights.data_ptr()),
          map ? static_cast<std::int32_t const*>(map->data_ptr()) : nullptr,
          static_cast<int>(tokens),
          static_cast<int>(topk),
          static_cast<int>(experts),
          map ? static_cast<int>(map->numel()) : 0,
          ids.scalar_type() == ScalarType::Long,
          router_weight_on_input};
}

// An activation of vLLM's MoEActivation.
struct NamedActivation {
  char const* name;
  moe::Activation activation;
  bool gated;
  bool interleaved;
};
// Gated "relu2" is missing: vLLM gives it no definition.
inline constexpr std::array<NamedActivation, 11> kActivations{{
    {"silu", moe::Activation::kSwish, true, false},
    {"gelu", moe::Activation::kGelu, true, false},
    {"gelu_tanh", moe::Activation::kGeluTanh, true, false},
    {"swigluoai", moe::Activation::kSwish, true, true},
    {"swigluoai_uninterleave", moe::Activation::kSwish, true, false},
    {"swiglustep", moe::Activation::kSwigluStep, true, false},
    {"situ", moe::Activation::kSitu, true, false},
    {"silu_no_mul", moe::Activation::kSwish, false, false},
    {"gelu_no_mul", moe::Activation::kGelu, false, false},
    {"gelu_tanh_no_mul", moe::Activation::kGeluTanh, false, false},
    {"relu2_no_mul", moe::Activation::kRelu2, false, false},
}};

// The activation of this name, of those that offered() is true for.
template <typename Offered>
NamedActivation const& find_activation(char const* op, std::string const& name, Offered&& offered) {
  std::string known;
  for (NamedActivation const& entry : kActivations) {
    if (!offered(entry)) continue;
    if (name == entry.name) return entry;
    known += std::string(known.empty() ? "" : ", ") + entry.name;
  }
  if (name == "relu2") {
    refuse(op, "activation is relu2 with a gate, which vLLM names and nobody defines; relu2_no_mul is the one without");
  }
  refuse(op, "activation is '" + name + "'; it must be one of " + known);
}

// The numbers of an activation. Without a gate there is nothing to limit, as in vLLM.
inline moe::ActivationNumbers check_activation_numbers(char const* op, NamedActivation const& named, double limit, double alpha,
                                                       double beta) {
  require(!std::isnan(limit) && limit > 0, op, "limit is " + std::to_string(limit) + "; it must be positive (infinity: no limit)");
  require(std::isfinite(alpha) && std::isfinite(beta), op, "alpha or beta is not finite");
  if (!named.gated) return {named.activation, std::numeric_limits<float>::infinity(), 1.0f, 0.0f};
  return {named.activation, static_cast<float>(limit), static_cast<float>(alpha), static_cast<float>(beta)};
}

}  // namespace gb10::torch_op
