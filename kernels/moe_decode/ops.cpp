// torch.ops.gb10.moe_decode
#include <array>
#include <limits>

#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "moe_decode.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

namespace moe = gb10::moe_decode;

constexpr char kOp[] = "moe_decode";
constexpr std::int64_t kUnit = 64;            // of hidden and intermediate

struct Named {
  char const* name;
  moe::Activation activation;
  bool gated;
  bool interleaved;
};
// The names of vLLM's MoEActivation. Gated "relu2" is missing: vLLM gives it no definition.
constexpr std::array<Named, 11> kActivations{{
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

Named const& find_activation(std::string const& name) {
  std::string known;
  for (Named const& entry : kActivations) {
    if (name == entry.name) return entry;
    known += std::string(known.empty() ? "" : ", ") + entry.name;
  }
  if (name == "relu2") {
    gb10::torch_op::refuse(kOp, "activation is relu2 with a gate, which vLLM names and nobody defines; relu2_no_mul is the one without");
  }
  gb10::torch_op::refuse(kOp, "activation is '" + name + "'; it must be one of " + known);
}

// A stack of matrices with their scales; `name` is w13, w2, shared_w13 or shared_w2. stacked: [count, rows, k / 2], else [rows, k / 2].
moe::Matrix matrix_of(std::string const& name, Tensor const& codes, Tensor const& scales, Tensor const& globals, std::int64_t count,
                      std::int64_t rows, std::int64_t k, bool stacked, bool swizzled, bool two_globals) {
  using namespace gb10::torch_op;
  std::string const scales_name = name + "_scales", globals_name = name + "_global";
  std::int64_t const scale_rows = swizzled ? round_up(rows, 128) : rows;
  if (stacked) {
    check_shape(kOp, name.c_str(), codes, {count, rows, k / 2});
    check_shape(kOp, scales_name.c_str(), scales, {count, scale_rows, k / 16});
  } else {
    check_shape(kOp, name.c_str(), codes, {rows, k / 2});
    check_shape(kOp, scales_name.c_str(), scales, {scale_rows, k / 16});
  }
  bool const one = globals.numel() == count && globals.dim() <= 1;
  bool const two = two_globals && globals.numel() == 2 * count && globals.dim() == (stacked ? 2 : 1) && globals.size(0) == (stacked ? count : 2);
  std::string wanted = two_globals ? "one number, or two: gate, up" : "one number";
  if (stacked) {
    wanted = std::string("[").append(std::to_string(count)).append("]");
    if (two_globals) wanted.append(" or [").append(std::to_string(count)).append(", 2]: gate, up");
  }
  require(one || two, kOp, globals_name + " has shape " + shape_of(globals) + "; it must be " + wanted);
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

void moe_decode(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global, Tensor w2, Tensor w2_scales, Tensor w2_global,
                Tensor topk_ids, Tensor topk_weights, std::optional<Tensor> expert_map, std::optional<Tensor> shared_w13,
                std::optional<Tensor> shared_w13_scales, std::optional<Tensor> shared_w13_global, std::optional<Tensor> shared_w2,
                std::optional<Tensor> shared_w2_scales, std::optional<Tensor> shared_w2_global,
                std::optional<Tensor> shared_multiplier, std::string activation, double limit, double alpha, double beta,
                bool up_first, bool swizzled, bool router_weight_on_input, Tensor workspace, Tensor out) {
  using namespace gb10::torch_op;
  Named const& named = find_activation(activation);
  bool const has_shared = shared_w13.has_value();
  require(has_shared == shared_w13_scales.has_value() && has_shared == shared_w13_global.has_value() &&
              has_shared == shared_w2.has_value() && has_shared == shared_w2_scales.has_value() &&
              has_shared == shared_w2_global.has_value(),
          kOp, "of the shared expert's six tensors some are given and some are not; give all or none");
  require(has_shared || !shared_multiplier, kOp, "shared_multiplier is given without a shared expert; give both or neither");
  check_activation_numbers(kOp, limit, alpha, beta);
  require(named.activation != moe::Activation::kSitu || alpha > 0, kOp, "alpha is " + std::to_string(alpha) + "; situ needs a positive one");
  require(!(named.interleaved && up_first), kOp, "up_first is true; swigluoai has gate and up rows interleaved, gate first");

  bool const wide_ids = topk_ids.scalar_type() == ScalarType::Long;
  std::size_t const id_bytes = wide_ids ? 8 : 4;
  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"w13", &w13, {ScalarType::Byte}, 16},
                                {"w13_scales", &w13_scales, {ScalarType::Float8_e4m3fn}, 16},
                                {"w13_global", &w13_global, {ScalarType::Float}, 4},
                                {"w2", &w2, {ScalarType::Byte}, 16},
                                {"w2_scales", &w2_scales, {ScalarType::Float8_e4m3fn}, 16},
                                {"w2_global", &w2_global, {ScalarType::Float}, 4},
                                {"topk_ids", &topk_ids, {ScalarType::Int, ScalarType::Long}, id_bytes},
                                {"topk_weights", &topk_weights, {ScalarType::Float}, 4},
                                {"expert_map", given(expert_map), {ScalarType::Int}, 4},
                                {"shared_w13", given(shared_w13), {ScalarType::Byte}, 16},
                                {"shared_w13_scales", given(shared_w13_scales), {ScalarType::Float8_e4m3fn}, 16},
                                {"shared_w13_global", given(shared_w13_global), {ScalarType::Float}, 4},
                                {"shared_w2", given(shared_w2), {ScalarType::Byte}, 16},
                                {"shared_w2_scales", given(shared_w2_scales), {ScalarType::Float8_e4m3fn}, 16},
                                {"shared_w2_global", given(shared_w2_global), {ScalarType::Float}, 4},
                                {"shared_multiplier", given(shared_multiplier), {ScalarType::Float, x.scalar_type()}, 2},
                                {"workspace", &workspace, {ScalarType::Byte}, 16},
                                {"out", &out, {x.scalar_type()}, 2}};
  check_dtypes(kOp, arguments);

  std::int64_t const tokens = check_tokens(kOp, x, moe::kMaxTokens), hidden = x.size(1);
  check_shape(kOp, "w2", w2, {-1, -1, -1});
  std::int64_t const experts = w2.size(0), intermediate = w2.size(2) * 2;
  check_width(kOp, "hidden (the columns of x)", hidden, kUnit, moe::kMaxWidth);
  check_width(kOp, "intermediate (twice the last size of w2)", intermediate, kUnit, moe::kMaxWidth);
  require(experts >= 1 && experts <= moe::kMaxExperts, kOp,
          "w2 holds " + std::to_string(experts) + " experts; it must hold 1 to " + std::to_string(moe::kMaxExperts));
  std::int64_t const gate_up = named.gated ? 2 : 1;
  moe::Arguments a{};
  a.w13 = matrix_of("w13", w13, w13_scales, w13_global, experts, gate_up * intermediate, hidden, true, swizzled, named.gated);
  a.w2 = matrix_of("w2", w2, w2_scales, w2_global, experts, hidden, intermediate, true, swizzled, false);
  std::int64_t shared_intermediate = 0;
  if (has_shared) {
    check_shape(kOp, "shared_w2", *shared_w2, {-1, -1});
    shared_intermediate = shared_w2->size(1) * 2;
    check_width(kOp, "the shared intermediate (twice the last size of shared_w2)", shared_intermediate, kUnit, moe::kMaxWidth);
    a.shared_w13 = matrix_of("shared_w13", *shared_w13, *shared_w13_scales, *shared_w13_global, 1, gate_up * shared_intermediate, hidden,
                             false, swizzled, named.gated);
    a.shared_w2 = matrix_of("shared_w2", *shared_w2, *shared_w2_scales, *shared_w2_global, 1, hidden, shared_intermediate, false,
                            swizzled, false);
    if (shared_multiplier) {
      if (shared_multiplier->dim() == 2) check_shape(kOp, "shared_multiplier", *shared_multiplier, {tokens, 1});
      else check_shape(kOp, "shared_multiplier", *shared_multiplier, {tokens});
      a.shared_multiplier = shared_multiplier->data_ptr();
      a.multiplier_as_x = shared_multiplier->scalar_type() != ScalarType::Float;
    }
  }
  std::int64_t const topk = check_topk(kOp, topk_ids, topk_weights, tokens, moe::kMaxTopk);
  if (expert_map) check_expert_map(kOp, *expert_map);
  check_shape(kOp, "out", out, {tokens, hidden});
  check_shape(kOp, "workspace", workspace, {-1});
  std::int64_t const needed = moe::workspace_bytes(tokens, topk, intermediate, shared_intermediate);
  require(workspace.numel() >= needed, kOp,
          "workspace has " + std::to_string(workspace.numel()) + " bytes; it must have at least " + std::to_string(needed));

  check_layouts_and_devices(kOp, arguments);

  a.x = x.data_ptr();
  a.ids = topk_ids.data_ptr();
  a.wide_ids = wide_ids;
  a.weights = static_cast<float const*>(topk_weights.data_ptr());
  if (expert_map) {
    a.expert_map = static_cast<std::int32_t const*>(expert_map->data_ptr());
    a.map_size = static_cast<int>(expert_map->numel());
  }
  a.act = workspace.data_ptr();
  a.out = out.data_ptr();
  a.tokens = static_cast<int>(tokens);
  a.topk = static_cast<int>(topk);
  a.experts = static_cast<int>(experts);
  a.activation = named.activation;
  a.gated = named.gated;
  a.interleaved = named.interleaved;
  a.up_first = up_first;
  a.router_weight_on_input = router_weight_on_input;
  // Without a gate there is nothing to limit, as in vLLM.
  a.limit = named.gated ? static_cast<float>(limit) : std::numeric_limits<float>::infinity();
  a.alpha = named.gated ? static_cast<float>(alpha) : 1.0f;
  a.beta = named.gated ? static_cast<float>(beta) : 0.0f;

  OnDeviceOf const device(kOp, x);
  device.check(moe::launch(a, x.scalar_type() == ScalarType::BFloat16, swizzled, device.stream()));
}

}  // namespace

GB10_OPERATOR(moe_decode,
              "moe_decode(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global, Tensor w2, Tensor w2_scales, Tensor w2_global, "
              "Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, Tensor? shared_w13, Tensor? shared_w13_scales, "
              "Tensor? shared_w13_global, Tensor? shared_w2, Tensor? shared_w2_scales, Tensor? shared_w2_global, "
              "Tensor? shared_multiplier, str activation, float limit, float alpha, float beta, bool up_first, bool swizzled, "
              "bool router_weight_on_input, Tensor(a!) workspace, Tensor(b!) out) -> ()",
              moe_decode)
