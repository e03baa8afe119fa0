// What several operators check of their arguments' shapes and numbers, each in one place and in the same words.
#pragma once

#include <cmath>
#include <limits>

#include "torch_op.h"

namespace gb10::torch_op {

inline constexpr std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

inline void check_one(char const* op, char const* name, Tensor const& tensor) {
  require(tensor.numel() == 1, op, std::string(name) + " has shape " + shape_of(tensor) + "; it must have one element");
}

// x is [tokens, any], with at most `most` tokens, and at least one.
inline std::int64_t check_tokens(char const* op, Tensor const& x, std::int64_t most) {
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

// Both are [tokens, topk]; gives topk.
inline std::int64_t check_topk(char const* op, Tensor const& ids, Tensor const& weights, std::int64_t tokens, std::int64_t most) {
  check_shape(op, "topk_ids", ids, {tokens, -1});
  std::int64_t const topk = ids.size(1);
  require(topk >= 1 && topk <= most, op,
          "topk_ids has " + std::to_string(topk) + " columns (topk); it must have 1 to " + std::to_string(most));
  check_shape(op, "topk_weights", weights, {tokens, topk});
  return topk;
}

inline void check_expert_map(char const* op, Tensor const& map) {
  check_shape(op, "expert_map", map, {-1});
  require(map.numel() >= 1 && map.numel() <= std::numeric_limits<std::int32_t>::max(), op,
          "expert_map has " + std::to_string(map.numel()) + " entries; it must have at least one");
}

// The numbers of a gated activation.
inline void check_activation_numbers(char const* op, double limit, double alpha, double beta) {
  require(!std::isnan(limit) && limit > 0, op, "limit is " + std::to_string(limit) + "; it must be positive (infinity: no limit)");
  require(std::isfinite(alpha) && std::isfinite(beta), op, "alpha or beta is not finite");
}

}  // namespace gb10::torch_op
