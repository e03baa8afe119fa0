// torch.ops.gb10.route_experts
#include "gb10/moe.h"
#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "moe_router.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

namespace router = gb10::moe_router;

constexpr char kOp[] = "route_experts";

// Blocks still read what another one writes.
void check_apart(char const* written, std::optional<Tensor> const& out, char const* read, Tensor const& in) {
  if (!out) return;
  auto const* const first = static_cast<std::uint8_t const*>(out->data_ptr());
  auto const* const other = static_cast<std::uint8_t const*>(in.data_ptr());
  std::int64_t const bytes = 2 * in.numel();
  gb10::torch_op::require(first + bytes <= other || other + bytes <= first, kOp,
                          std::string(written) + " and " + read + " share memory; give it memory of its own");
}

void route_experts(Tensor x, std::optional<Tensor> residual, std::optional<Tensor> norm_weight, double epsilon, bool norm_plus_one,
                   Tensor gate_weight, std::optional<Tensor> shared_gate_weight, bool renormalise, Tensor workspace,
                   Tensor topk_ids, Tensor topk_weights, std::optional<Tensor> shared_multiplier, std::optional<Tensor> normed,
                   std::optional<Tensor> residual_out) {
  using namespace gb10::torch_op;
  require(norm_weight || (!residual && !normed && !residual_out), kOp,
          "residual, normed or residual_out is given without norm_weight; x is taken as normed then, so give none of them");
  require(shared_gate_weight.has_value() == shared_multiplier.has_value(), kOp,
          "of shared_gate_weight and shared_multiplier one is given and one is not; give both or none");
  require(!norm_weight || (std::isfinite(epsilon) && epsilon >= 0), kOp,
          "epsilon is " + std::to_string(epsilon) + "; it must be 0 or more");

  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"residual", given(residual), {x.scalar_type()}, 16},
                                {"norm_weight", given(norm_weight), {x.scalar_type()}, 16},
                                {"gate_weight", &gate_weight, {x.scalar_type()}, 16},
                                {"shared_gate_weight", given(shared_gate_weight), {x.scalar_type()}, 16},
                                {"workspace", &workspace, {ScalarType::Byte}, 16},
                                {"topk_ids", &topk_ids, {ScalarType::Int}, 4},
                                {"topk_weights", &topk_weights, {ScalarType::Float}, 4},
                                {"shared_multiplier", given(shared_multiplier), {ScalarType::Float}, 4},
                                {"normed", given(normed), {x.scalar_type()}, 16},
                                {"residual_out", given(residual_out), {x.scalar_type()}, 16}};
  check_dtypes(kOp, arguments);

  std::int64_t const tokens = check_tokens(kOp, x);
  std::int64_t const columns = check_columns(kOp, x, router::kColumnUnit, router::kMaxColumns);
  check_shape(kOp, "gate_weight", gate_weight, {-1, columns});
  std::int64_t const experts = gate_weight.size(0);
  require(
      experts >= 1 && experts <= router::kMaxExperts, kOp,
      "gate_weight has " + std::to_string(experts) + " rows (experts); it must have 1 to " + std::to_string(router::kMaxExperts));
  check_shape(kOp, "topk_ids", topk_ids, {tokens, -1});
  std::int64_t const topk = topk_ids.size(1), most = std::min<std::int64_t>(experts, gb10::moe::kMaxTopk);
  require(topk >= 1 && topk <= most, kOp,
          "topk_ids has " + std::to_string(topk) + " columns (topk); it must have 1 to " + std::to_string(most));
  check_shape(kOp, "topk_weights", topk_weights, {tokens, topk});
  if (residual) check_shape(kOp, "residual", *residual, {tokens, columns});
  if (norm_weight) check_shape(kOp, "norm_weight", *norm_weight, {columns});
  if (shared_gate_weight) {
    if (shared_gate_weight->dim() == 1) check_shape(kOp, "shared_gate_weight", *shared_gate_weight, {columns});
    else check_shape(kOp, "shared_gate_weight", *shared_gate_weight, {1, columns});
    if (shared_multiplier->dim() == 2) check_shape(kOp, "shared_multiplier", *shared_multiplier, {tokens, 1});
    else check_shape(kOp, "shared_multiplier", *shared_multiplier, {tokens});
  }
  if (normed) check_shape(kOp, "normed", *normed, {tokens, columns});
  if (residual_out) check_shape(kOp, "residual_out", *residual_out, {tokens, columns});
  check_shape(kOp, "workspace", workspace, {-1});
  std::int64_t const needed = router::workspace_bytes(tokens, static_cast<int>(experts));
  require(workspace.numel() >= needed, kOp,
          "workspace has " + std::to_string(workspace.numel()) + " bytes; it must have at least " + std::to_string(needed));
  check_apart("normed", normed, "x", x);
  check_apart("residual_out", residual_out, "x", x);
  if (residual) {
    check_apart("normed", normed, "residual", *residual);
    check_apart("residual_out", residual_out, "residual", *residual);
  }

  check_layouts_and_devices(kOp, arguments);

  auto const pointer_of = [](std::optional<Tensor> const& tensor) { return tensor ? tensor->data_ptr() : nullptr; };
  router::Arguments a{};
  a.x = x.data_ptr();
  a.residual = pointer_of(residual);
  a.norm_weight = pointer_of(norm_weight);
  a.gate = gate_weight.data_ptr();
  a.shared_gate = pointer_of(shared_gate_weight);
  a.keys = static_cast<std::uint32_t*>(workspace.data_ptr());
  a.ids = static_cast<std::int32_t*>(topk_ids.data_ptr());
  a.weights = static_cast<float*>(topk_weights.data_ptr());
  a.shared_multiplier = static_cast<float*>(pointer_of(shared_multiplier));
  a.normed = pointer_of(normed);
  a.residual_out = pointer_of(residual_out);
  a.epsilon = static_cast<float>(epsilon);
  a.tokens = static_cast<int>(tokens);
  a.columns = static_cast<int>(columns);
  a.experts = static_cast<int>(experts);
  a.topk = static_cast<int>(topk);
  a.norm_plus_one = norm_plus_one;
  a.renormalise = renormalise;

  OnDeviceOf const device(kOp, x);
  device.check(router::launch(a, number_of(x), device.stream()));
}

}  // namespace

GB10_OPERATOR(route_experts,
              "route_experts(Tensor x, Tensor? residual, Tensor? norm_weight, float epsilon, bool norm_plus_one, "
              "Tensor gate_weight, Tensor? shared_gate_weight, bool renormalise, Tensor(a!) workspace, Tensor(b!) topk_ids, "
              "Tensor(c!) topk_weights, Tensor(d!)? shared_multiplier, Tensor(e!)? normed, Tensor(f!)? residual_out) -> ()",
              route_experts)
