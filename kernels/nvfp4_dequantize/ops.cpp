// torch.ops.gb10.nvfp4_dequantize
#include <limits>

#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "nvfp4_dequantize.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "nvfp4_dequantize";

void nvfp4_dequantize(Tensor weight, Tensor scales, std::optional<Tensor> factors, bool swizzled, Tensor out) {
  using namespace gb10::torch_op;
  namespace dequantize = gb10::nvfp4_dequantize;

  Argument const arguments[] = {{"weight", &weight, {ScalarType::Byte}, 16},
                                {"scales", &scales, {ScalarType::Float8_e4m3fn}, 4},
                                {"factors", given(factors), {ScalarType::Float}, 4},
                                {"out", &out, {ScalarType::BFloat16, ScalarType::Half}, 16}};
  check_dtypes(kOp, arguments);

  check_shape(kOp, "weight", weight, {-1, -1});
  std::int64_t const rows = weight.size(0), k = weight.size(1) * 2;
  require(rows >= 1 && rows <= std::numeric_limits<std::int32_t>::max(), kOp,
          "weight has " + std::to_string(rows) + " rows; it must have at least one");
  check_width(kOp, "K (twice the columns of weight)", k, dequantize::kUnitK, 1 << 20);
  check_shape(kOp, "scales", scales, {swizzled ? round_up(rows, 128) : rows, k / 16});
  require(!factors || (factors->dim() <= 1 && (factors->numel() == 1 || factors->numel() == rows)), kOp,
          "factors has shape " + (factors ? shape_of(*factors) : "") + "; it must have one element, or one for each row");
  check_shape(kOp, "out", out, {rows, k});

  check_layouts_and_devices(kOp, arguments);

  dequantize::Problem problem{};
  problem.weight = static_cast<std::uint8_t const*>(weight.data_ptr());
  problem.scales = static_cast<std::uint8_t const*>(scales.data_ptr());
  problem.factors = factors ? static_cast<float const*>(factors->data_ptr()) : nullptr;
  problem.out = out.data_ptr();
  problem.rows = static_cast<int>(rows);
  problem.k = static_cast<int>(k);
  problem.factor_rows = factors ? static_cast<int>(factors->numel()) : 0;

  OnDeviceOf const device(kOp, weight);
  device.check(dequantize::launch(problem, number_of(out), swizzled, device.stream()));
}

}  // namespace

GB10_OPERATOR(nvfp4_dequantize,
              "nvfp4_dequantize(Tensor weight, Tensor scales, Tensor? factors, bool swizzled, Tensor(a!) out) -> ()",
              nvfp4_dequantize)
