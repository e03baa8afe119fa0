// torch.ops.gb10.quantize_nvfp4, silu_mul_quantize_nvfp4, quantize_nvfp4_experts
#include <limits>

#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "quantize.h"

namespace {

namespace quantize = gb10::quantize;
using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr std::int64_t kMaximumK = 1 << 24;
constexpr std::int64_t kMaximumRows = std::numeric_limits<std::int32_t>::max() - 256;

// K of x, whose last dimension is `parts` times K.
std::int64_t check_k(char const* op, Tensor const& x, std::int64_t parts) {
  using namespace gb10::torch_op;
  require(x.dim() >= 1, op, "x has shape []; it must have at least one dimension");
  std::int64_t const last = x.size(x.dim() - 1), step = parts * 16;
  require(last > 0 && last % step == 0 && last / parts <= kMaximumK, op,
          "x has shape " + shape_of(x) + "; its last dimension must be a multiple of " + std::to_string(step) + ", from " +
              std::to_string(step) + " to " + std::to_string(kMaximumK * parts));
  return last / parts;
}

void check_rows(char const* op, std::int64_t rows) {
  gb10::torch_op::require(rows <= kMaximumRows, op,
                          "x has " + std::to_string(rows) + " rows; it must have at most " + std::to_string(kMaximumRows));
}

// `tensor` has the leading dimensions of x and `last` as its last one.
void check_like(char const* op, char const* name, Tensor const& tensor, Tensor const& x, std::int64_t last) {
  using namespace gb10::torch_op;
  bool same = tensor.dim() == x.dim();
  std::ostringstream wanted;
  for (std::int64_t i = 0; i + 1 < x.dim(); ++i) {
    same = same && tensor.size(i) == x.size(i);
    wanted << x.size(i) << ", ";
  }
  same = same && tensor.size(x.dim() - 1) == last;
  wanted << last;
  require(same, op, std::string(name) + " has shape " + shape_of(tensor) + "; it must be [" + wanted.str() + "]");
}

void quantize_any(char const* op, bool gated, Tensor const& x, Tensor const& global_scale, bool swizzled, Tensor const& packed,
                  Tensor const& scales) {
  using namespace gb10::torch_op;
  std::size_t const scale_alignment = swizzled ? 4 : 1;
  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float}, 16},
                                {"global_scale", &global_scale, {ScalarType::Float}, 4},
                                {"packed", &packed, {ScalarType::Byte}, 8},
                                {"scales", &scales, {ScalarType::Float8_e4m3fn}, scale_alignment}};
  check_dtypes(op, arguments);
  std::int64_t const k = check_k(op, x, gated ? 2 : 1);
  std::int64_t const rows = x.numel() / x.size(x.dim() - 1);
  check_rows(op, rows);
  check_one(op, "global_scale", global_scale);
  check_like(op, "packed", packed, x, k / 2);
  std::int64_t const scale_rows = swizzled ? round_up(rows, 128) : rows;
  if (swizzled) {
    check_shape(op, "scales", scales, {scale_rows, round_up(k / 16, 4)});
  } else {
    check_like(op, "scales", scales, x, k / 16);
  }
  check_layouts_and_devices(op, arguments);
  if (rows == 0) return;

  quantize::Problem problem{};
  problem.x = x.data_ptr();
  problem.global_scales = static_cast<float const*>(global_scale.data_ptr());
  problem.packed = static_cast<std::uint8_t*>(packed.data_ptr());
  problem.scales = static_cast<std::uint8_t*>(scales.data_ptr());
  problem.rows = static_cast<std::int32_t>(rows);
  problem.scale_rows = static_cast<std::int32_t>(scale_rows);
  problem.columns = static_cast<std::int32_t>(k / 16);
  OnDeviceOf const device(op, x);
  auto const layout = swizzled ? quantize::Layout::kSwizzled : quantize::Layout::kLinear;
  device.check(quantize::launch(problem, number_of(x), layout, gated, device.stream()));
}

void quantize_nvfp4(Tensor x, Tensor global_scale, bool swizzled, Tensor packed, Tensor scales) {
  quantize_any("quantize_nvfp4", false, x, global_scale, swizzled, packed, scales);
}

void silu_mul_quantize_nvfp4(Tensor x, Tensor global_scale, bool swizzled, Tensor packed, Tensor scales) {
  quantize_any("silu_mul_quantize_nvfp4", true, x, global_scale, swizzled, packed, scales);
}

void quantize_nvfp4_experts(Tensor x, Tensor global_scales, Tensor expert_offsets, Tensor scale_offsets, Tensor packed,
                            Tensor scales) {
  using namespace gb10::torch_op;
  constexpr char op[] = "quantize_nvfp4_experts";
  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float}, 16},
                                {"global_scales", &global_scales, {ScalarType::Float}, 4},
                                {"expert_offsets", &expert_offsets, {ScalarType::Int}, 4},
                                {"scale_offsets", &scale_offsets, {ScalarType::Int}, 4},
                                {"packed", &packed, {ScalarType::Byte}, 8},
                                {"scales", &scales, {ScalarType::Float8_e4m3fn}, 4}};
  check_dtypes(op, arguments);
  check_shape(op, "x", x, {-1, -1});
  std::int64_t const k = check_k(op, x, 1), rows = x.size(0);
  check_rows(op, rows);
  check_shape(op, "global_scales", global_scales, {-1});
  std::int64_t const experts = global_scales.size(0);
  require(experts >= 1 && experts <= 65536, op,
          "global_scales has " + std::to_string(experts) + " elements; it must have one for each expert, 1 to 65536");
  check_shape(op, "expert_offsets", expert_offsets, {experts + 1});
  check_shape(op, "scale_offsets", scale_offsets, {experts + 1});
  check_shape(op, "packed", packed, {rows, k / 2});
  check_shape(op, "scales", scales, {-1, round_up(k / 16, 4)});
  std::int64_t const scale_rows = scales.size(0);
  require(scale_rows % 128 == 0 && scale_rows <= kMaximumRows, op,
          "scales has " + std::to_string(scale_rows) + " rows; it must have a multiple of 128, at most " +
              std::to_string(kMaximumRows));
  check_layouts_and_devices(op, arguments);
  if (scale_rows == 0) return;

  quantize::Problem problem{};
  problem.x = x.data_ptr();
  problem.global_scales = static_cast<float const*>(global_scales.data_ptr());
  problem.packed = static_cast<std::uint8_t*>(packed.data_ptr());
  problem.scales = static_cast<std::uint8_t*>(scales.data_ptr());
  problem.expert_offsets = static_cast<std::int32_t const*>(expert_offsets.data_ptr());
  problem.scale_offsets = static_cast<std::int32_t const*>(scale_offsets.data_ptr());
  problem.rows = static_cast<std::int32_t>(rows);
  problem.scale_rows = static_cast<std::int32_t>(scale_rows);
  problem.columns = static_cast<std::int32_t>(k / 16);
  problem.experts = static_cast<std::int32_t>(experts);
  OnDeviceOf const device(op, x);
  device.check(quantize::launch(problem, number_of(x), quantize::Layout::kExperts, false, device.stream()));
}

}  // namespace

GB10_OPERATOR(quantize_nvfp4,
              "quantize_nvfp4(Tensor x, Tensor global_scale, bool swizzled, Tensor(a!) packed, Tensor(b!) scales) -> ()",
              quantize_nvfp4)
GB10_OPERATOR(silu_mul_quantize_nvfp4,
              "silu_mul_quantize_nvfp4(Tensor x, Tensor global_scale, bool swizzled, Tensor(a!) packed, Tensor(b!) scales) -> ()",
              silu_mul_quantize_nvfp4)
GB10_OPERATOR(quantize_nvfp4_experts,
              "quantize_nvfp4_experts(Tensor x, Tensor global_scales, Tensor expert_offsets, Tensor scale_offsets, "
              "Tensor(a!) packed, Tensor(b!) scales) -> ()",
              quantize_nvfp4_experts)
