// torch.ops.gb10.moe_decode
#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "moe_decode.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

namespace decode = gb10::moe_decode;

constexpr char kOp[] = "moe_decode";
constexpr std::int64_t kUnit = 64;  // of hidden and intermediate

// A stack of matrices with their scales; `name` is w13, w2, shared_w13 or shared_w2. stacked: [count, rows, k / 2], else [rows, k / 2].
decode::Matrix matrix_of(std::string const& name, Tensor const& codes, Tensor const& scales, Tensor const& globals,
                         std::int64_t count, std::int64_t rows, std::int64_t k, bool stacked, bool swizzled, bool two_globals) {
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
  bool const two =
      two_globals && globals.numel() == 2 * count && globals.dim() == (stacked ? 2 : 1) && globals.size(0) == (stacked ? count : 2);
  std::string wanted = two_globals ? "one number, or two: gate, up" : "one number";
  if (stacked) {
    wanted = std::string("[").append(std::to_string(count)).append("]");
    if (two_globals) wanted.append(" or [").append(std::to_string(count)).append(", 2]: gate, up");
  }
  require(one || two, kOp, globals_name + " has shape " + shape_of(globals) + "; it must be " + wanted);
  decode::Matrix m{};
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
  NamedActivation const& named = find_activation(kOp, activation, [](NamedActivation const&) { return true; });
  bool const has_shared = shared_w13.has_value();
  require(has_shared == shared_w13_scales.has_value() && has_shared == shared_w13_global.has_value() &&
              has_shared == shared_w2.has_value() && has_shared == shared_w2_scales.has_value() &&
              has_shared == shared_w2_global.has_value(),
          kOp, "of the shared expert's six tensors some are given and some are not; give all or none");
  require(has_shared || !shared_multiplier, kOp, "shared_multiplier is given without a shared expert; give both or neither");
  decode::Arguments a{};
  static_cast<gb10::moe::ActivationNumbers&>(a) = check_activation_numbers(kOp, named, limit, alpha, beta);
  require(named.activation != gb10::moe::Activation::kSitu || alpha > 0, kOp,
          "alpha is " + std::to_string(alpha) + "; situ needs a positive one");
  require(!(named.interleaved && up_first), kOp, "up_first is true; swigluoai has gate and up rows interleaved, gate first");

  std::size_t const id_bytes = topk_ids.scalar_type() == ScalarType::Long ? 8 : 4;
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

  std::int64_t const tokens = check_tokens(kOp, x), hidden = x.size(1);
  check_shape(kOp, "w2", w2, {-1, -1, -1});
  std::int64_t const experts = w2.size(0), intermediate = w2.size(2) * 2;
  check_width(kOp, "hidden (the columns of x)", hidden, kUnit, decode::kMaxWidth);
  check_width(kOp, "intermediate (twice the last size of w2)", intermediate, kUnit, decode::kMaxWidth);
  require(experts >= 1 && experts <= decode::kMaxExperts, kOp,
          "w2 holds " + std::to_string(experts) + " experts; it must hold 1 to " + std::to_string(decode::kMaxExperts));
  std::int64_t const gate_up = named.gated ? 2 : 1;
  a.w13 = matrix_of("w13", w13, w13_scales, w13_global, experts, gate_up * intermediate, hidden, true, swizzled, named.gated);
  a.w2 = matrix_of("w2", w2, w2_scales, w2_global, experts, hidden, intermediate, true, swizzled, false);
  std::int64_t shared_intermediate = 0;
  if (has_shared) {
    check_shape(kOp, "shared_w2", *shared_w2, {-1, -1});
    shared_intermediate = shared_w2->size(1) * 2;
    check_width(kOp, "the shared intermediate (twice the last size of shared_w2)", shared_intermediate, kUnit, decode::kMaxWidth);
    a.shared_w13 = matrix_of("shared_w13", *shared_w13, *shared_w13_scales, *shared_w13_global, 1, gate_up * shared_intermediate,
                             hidden, false, swizzled, named.gated);
    a.shared_w2 = matrix_of("shared_w2", *shared_w2, *shared_w2_scales, *shared_w2_global, 1, hidden, shared_intermediate, false,
                            swizzled, false);
    if (shared_multiplier) {
      if (shared_multiplier->dim() == 2) check_shape(kOp, "shared_multiplier", *shared_multiplier, {tokens, 1});
      else check_shape(kOp, "shared_multiplier", *shared_multiplier, {tokens});
      a.shared_multiplier = shared_multiplier->data_ptr();
      a.multiplier_as_x = shared_multiplier->scalar_type() != ScalarType::Float;
    }
  }
  static_cast<gb10::moe::Routing&>(a) =
      check_routing(kOp, topk_ids, topk_weights, expert_map, tokens, experts, router_weight_on_input);
  check_shape(kOp, "out", out, {tokens, hidden});
  check_shape(kOp, "workspace", workspace, {-1});
  std::int64_t const needed = decode::workspace_bytes(tokens, a.topk, intermediate, shared_intermediate);
  require(workspace.numel() >= needed, kOp,
          "workspace has " + std::to_string(workspace.numel()) + " bytes; it must have at least " + std::to_string(needed));

  check_layouts_and_devices(kOp, arguments);

  a.x = x.data_ptr();
  a.act = workspace.data_ptr();
  a.out = out.data_ptr();
  a.gated = named.gated;
  a.interleaved = named.interleaved;
  a.up_first = up_first;

  OnDeviceOf const device(kOp, x);
  device.check(decode::launch(a, number_of(x), swizzled, device.stream()));
}

}  // namespace

GB10_OPERATOR(
    moe_decode,
    "moe_decode(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global, Tensor w2, Tensor w2_scales, Tensor w2_global, "
    "Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, Tensor? shared_w13, Tensor? shared_w13_scales, "
    "Tensor? shared_w13_global, Tensor? shared_w2, Tensor? shared_w2_scales, Tensor? shared_w2_global, "
    "Tensor? shared_multiplier, str activation, float limit, float alpha, float beta, bool up_first, bool swizzled, "
    "bool router_weight_on_input, Tensor(a!) workspace, Tensor(b!) out) -> ()",
    moe_decode)
