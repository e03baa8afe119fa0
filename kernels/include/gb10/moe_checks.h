// What the operators of a mixture-of-experts layer check of their arguments, and the layer that they make of them.
#pragma once

#include "gb10/op_checks.h"

namespace gb10::torch_op {

inline constexpr std::int64_t kMoeUnit = 64;  // of hidden and intermediate

// The tensors and numbers of such an operator, in the order of its schema.
struct MoeTensors {
  Tensor x, w13, w13_scales, w13_global, w2, w2_scales, w2_global, topk_ids, topk_weights;
  std::optional<Tensor> expert_map, shared_w13, shared_w13_scales, shared_w13_global, shared_w2, shared_w2_scales, shared_w2_global,
      shared_multiplier;
  Tensor workspace, out;
};
struct MoeNumbers {
  std::string activation;
  double limit, alpha, beta;
  bool up_first, swizzled, router_weight_on_input;
};

// A stack of matrices with their scales; `name` is w13, w2, shared_w13 or shared_w2. stacked: [count, rows, k / 2], else [rows, k / 2].
inline moe::Matrix matrix_of(char const* op, std::string const& name, Tensor const& codes, Tensor const& scales,
                             Tensor const& globals, std::int64_t count, std::int64_t rows, std::int64_t k, bool stacked,
                             bool swizzled, bool two_globals) {
  std::string const scales_name = name + "_scales", globals_name = name + "_global";
  std::int64_t const scale_rows = swizzled ? round_up(rows, 128) : rows;
  if (stacked) {
    check_shape(op, name.c_str(), codes, {count, rows, k / 2});
    check_shape(op, scales_name.c_str(), scales, {count, scale_rows, k / 16});
  } else {
    check_shape(op, name.c_str(), codes, {rows, k / 2});
    check_shape(op, scales_name.c_str(), scales, {scale_rows, k / 16});
  }
  bool const one = globals.numel() == count && globals.dim() <= 1;
  bool const two =
      two_globals && globals.numel() == 2 * count && globals.dim() == (stacked ? 2 : 1) && globals.size(0) == (stacked ? count : 2);
  std::string wanted = two_globals ? "one number, or two: gate, up" : "one number";
  if (stacked) {
    wanted = std::string("[").append(std::to_string(count)).append("]");
    if (two_globals) wanted.append(" or [").append(std::to_string(count)).append(", 2]: gate, up");
  }
  require(one || two, op, globals_name + " has shape " + shape_of(globals) + "; it must be " + wanted);
  moe::Matrix m{};
  m.codes = static_cast<std::uint8_t const*>(codes.data_ptr());
  m.scales = static_cast<std::uint8_t const*>(scales.data_ptr());
  m.globals = static_cast<float const*>(globals.data_ptr());
  m.scale_bytes = scale_rows * (k / 16);
  m.rows = static_cast<int>(rows);
  m.k = static_cast<int>(k);
  m.global_columns = two ? 2 : 1;
  return m;
}

struct MoeLimits {
  std::int64_t tokens, width, experts;
};

// Checks all, and gives the layer. workspace_bytes(tokens, topk, experts, hidden, intermediate, shared intermediate): what the
// operator needs.
template <typename WorkspaceBytes>
moe::Layer check_layer(char const* op, MoeTensors const& t, MoeNumbers const& n, MoeLimits const& limits,
                       WorkspaceBytes&& workspace_bytes) {
  NamedActivation const& named = find_activation(op, n.activation, [](NamedActivation const&) { return true; });
  bool const has_shared = t.shared_w13.has_value();
  require(has_shared == t.shared_w13_scales.has_value() && has_shared == t.shared_w13_global.has_value() &&
              has_shared == t.shared_w2.has_value() && has_shared == t.shared_w2_scales.has_value() &&
              has_shared == t.shared_w2_global.has_value(),
          op, "of the shared expert's six tensors some are given and some are not; give all or none");
  require(has_shared || !t.shared_multiplier, op, "shared_multiplier is given without a shared expert; give both or neither");
  moe::Layer a{};
  static_cast<moe::ActivationNumbers&>(a) = check_activation_numbers(op, named, n.limit, n.alpha, n.beta);
  require(named.activation != moe::Activation::kSitu || n.alpha > 0, op,
          "alpha is " + std::to_string(n.alpha) + "; situ needs a positive one");
  require(!(named.interleaved && n.up_first), op, "up_first is true; swigluoai has gate and up rows interleaved, gate first");

  std::size_t const id_bytes = t.topk_ids.scalar_type() == ScalarType::Long ? 8 : 4;
  Argument const arguments[] = {{"x", &t.x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"w13", &t.w13, {ScalarType::Byte}, 16},
                                {"w13_scales", &t.w13_scales, {ScalarType::Float8_e4m3fn}, 16},
                                {"w13_global", &t.w13_global, {ScalarType::Float}, 4},
                                {"w2", &t.w2, {ScalarType::Byte}, 16},
                                {"w2_scales", &t.w2_scales, {ScalarType::Float8_e4m3fn}, 16},
                                {"w2_global", &t.w2_global, {ScalarType::Float}, 4},
                                {"topk_ids", &t.topk_ids, {ScalarType::Int, ScalarType::Long}, id_bytes},
                                {"topk_weights", &t.topk_weights, {ScalarType::Float}, 4},
                                {"expert_map", given(t.expert_map), {ScalarType::Int}, 4},
                                {"shared_w13", given(t.shared_w13), {ScalarType::Byte}, 16},
                                {"shared_w13_scales", given(t.shared_w13_scales), {ScalarType::Float8_e4m3fn}, 16},
                                {"shared_w13_global", given(t.shared_w13_global), {ScalarType::Float}, 4},
                                {"shared_w2", given(t.shared_w2), {ScalarType::Byte}, 16},
                                {"shared_w2_scales", given(t.shared_w2_scales), {ScalarType::Float8_e4m3fn}, 16},
                                {"shared_w2_global", given(t.shared_w2_global), {ScalarType::Float}, 4},
                                {"shared_multiplier", given(t.shared_multiplier), {ScalarType::Float, t.x.scalar_type()}, 2},
                                {"workspace", &t.workspace, {ScalarType::Byte}, 16},
                                {"out", &t.out, {t.x.scalar_type()}, 2}};
  check_dtypes(op, arguments);

  std::int64_t const tokens = check_tokens(op, t.x, limits.tokens), hidden = t.x.size(1);
  check_shape(op, "w2", t.w2, {-1, -1, -1});
  std::int64_t const experts = t.w2.size(0), intermediate = t.w2.size(2) * 2;
  check_width(op, "hidden (the columns of x)", hidden, kMoeUnit, limits.width);
  check_width(op, "intermediate (twice the last size of w2)", intermediate, kMoeUnit, limits.width);
  require(experts >= 1 && experts <= limits.experts, op,
          "w2 holds " + std::to_string(experts) + " experts; it must hold 1 to " + std::to_string(limits.experts));
  std::int64_t const gate_up = named.gated ? 2 : 1;
  a.w13 = matrix_of(op, "w13", t.w13, t.w13_scales, t.w13_global, experts, gate_up * intermediate, hidden, true, n.swizzled,
                    named.gated);
  a.w2 = matrix_of(op, "w2", t.w2, t.w2_scales, t.w2_global, experts, hidden, intermediate, true, n.swizzled, false);
  std::int64_t shared_intermediate = 0;
  if (has_shared) {
    check_shape(op, "shared_w2", *t.shared_w2, {-1, -1});
    shared_intermediate = t.shared_w2->size(1) * 2;
    check_width(op, "the shared intermediate (twice the last size of shared_w2)", shared_intermediate, kMoeUnit, limits.width);
    a.shared_w13 = matrix_of(op, "shared_w13", *t.shared_w13, *t.shared_w13_scales, *t.shared_w13_global, 1,
                             gate_up * shared_intermediate, hidden, false, n.swizzled, named.gated);
    a.shared_w2 = matrix_of(op, "shared_w2", *t.shared_w2, *t.shared_w2_scales, *t.shared_w2_global, 1, hidden, shared_intermediate,
                            false, n.swizzled, false);
    if (t.shared_multiplier) {
      if (t.shared_multiplier->dim() == 2) check_shape(op, "shared_multiplier", *t.shared_multiplier, {tokens, 1});
      else check_shape(op, "shared_multiplier", *t.shared_multiplier, {tokens});
      a.shared_multiplier = t.shared_multiplier->data_ptr();
      a.multiplier_as_x = t.shared_multiplier->scalar_type() != ScalarType::Float;
    }
  }
  static_cast<moe::Routing&>(a) =
      check_routing(op, t.topk_ids, t.topk_weights, t.expert_map, tokens, experts, n.router_weight_on_input);
  check_shape(op, "out", t.out, {tokens, hidden});
  check_shape(op, "workspace", t.workspace, {-1});
  std::int64_t const needed = workspace_bytes(tokens, a.topk, experts, hidden, intermediate, shared_intermediate);
  require(t.workspace.numel() >= needed, op,
          "workspace has " + std::to_string(t.workspace.numel()) + " bytes; it must have at least " + std::to_string(needed));

  check_layouts_and_devices(op, arguments);

  a.x = t.x.data_ptr();
  a.out = t.out.data_ptr();
  a.gated = named.gated;
  a.interleaved = named.interleaved;
  a.up_first = n.up_first;
  return a;
}

// An operator of such a layer, as it is registered: GB10_OPERATOR(name, "name" GB10_MOE_SCHEMA, moe_operator<run>).
#define GB10_MOE_SCHEMA                                                                                             \
  "(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global, Tensor w2, Tensor w2_scales, Tensor w2_global, "    \
  "Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, Tensor? shared_w13, Tensor? shared_w13_scales, "       \
  "Tensor? shared_w13_global, Tensor? shared_w2, Tensor? shared_w2_scales, Tensor? shared_w2_global, "              \
  "Tensor? shared_multiplier, str activation, float limit, float alpha, float beta, bool up_first, bool swizzled, " \
  "bool router_weight_on_input, Tensor(a!) workspace, Tensor(b!) out) -> ()"

template <void (*kRun)(MoeTensors const&, MoeNumbers const&)>
void moe_operator(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global, Tensor w2, Tensor w2_scales, Tensor w2_global,
                  Tensor topk_ids, Tensor topk_weights, std::optional<Tensor> expert_map, std::optional<Tensor> shared_w13,
                  std::optional<Tensor> shared_w13_scales, std::optional<Tensor> shared_w13_global, std::optional<Tensor> shared_w2,
                  std::optional<Tensor> shared_w2_scales, std::optional<Tensor> shared_w2_global,
                  std::optional<Tensor> shared_multiplier, std::string activation, double limit, double alpha, double beta,
                  bool up_first, bool swizzled, bool router_weight_on_input, Tensor workspace, Tensor out) {
  kRun({x, w13, w13_scales, w13_global, w2, w2_scales, w2_global, topk_ids, topk_weights, expert_map, shared_w13, shared_w13_scales,
        shared_w13_global, shared_w2, shared_w2_scales, shared_w2_global, shared_multiplier, workspace, out},
       {activation, limit, alpha, beta, up_first, swizzled, router_weight_on_input});
}

}  // namespace gb10::torch_op
