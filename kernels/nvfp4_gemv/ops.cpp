// torch.ops.gb10.nvfp4_gemv
#include <limits>

#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "nvfp4_gemv.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "nvfp4_gemv";

void nvfp4_gemv(Tensor x, Tensor weight, Tensor scales, Tensor global_scale, std::optional<Tensor> bias, bool swizzled,
                Tensor out) {
  using namespace gb10::torch_op;
  namespace gemv = gb10::nvfp4_gemv;

  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"weight", &weight, {ScalarType::Byte}, 16},
                                {"scales", &scales, {ScalarType::Float8_e4m3fn}, 4},
                                {"global_scale", &global_scale, {ScalarType::Float}, 4},
                                {"bias", given(bias), {x.scalar_type()}, 2},
                                {"out", &out, {x.scalar_type()}, 2}};
  check_dtypes(kOp, arguments);

  std::int64_t const tokens = check_tokens(kOp, x);
  check_shape(kOp, "weight", weight, {-1, -1});
  std::int64_t const k = check_columns(kOp, x, gemv::kUnitK, gemv::kMaxK), rows = weight.size(0);
  require(rows >= 1 && (rows + 127) * (k / 2) <= std::numeric_limits<std::uint32_t>::max(), kOp,
          "weight has " + std::to_string(rows) + " rows (N) of " + std::to_string(k / 2) +
              " bytes; N must be at least 1 and a weight smaller than 4 GiB");
  check_shape(kOp, "weight", weight, {rows, k / 2});
  if (swizzled) {
    check_shape(kOp, "scales", scales, {round_up(rows, 128), k / 16});
  } else {
    check_shape(kOp, "scales", scales, {rows, k / 16});
  }
  check_one(kOp, "global_scale", global_scale);
  if (bias) check_shape(kOp, "bias", *bias, {rows});
  check_shape(kOp, "out", out, {tokens, rows});

  check_layouts_and_devices(kOp, arguments);

  gemv::Problem problem{};
  problem.x = x.data_ptr();
  problem.weight = static_cast<std::uint8_t const*>(weight.data_ptr());
  problem.scales = static_cast<std::uint8_t const*>(scales.data_ptr());
  problem.global_scale = static_cast<float const*>(global_scale.data_ptr());
  problem.bias = bias ? bias->data_ptr() : nullptr;
  problem.out = out.data_ptr();
  problem.tokens = static_cast<int>(tokens);
  problem.rows = static_cast<int>(rows);
  problem.k = static_cast<int>(k);

  OnDeviceOf const device(kOp, x);
  device.check(gemv::launch(problem, number_of(x), swizzled, device.stream()));
}

}  // namespace

GB10_OPERATOR(nvfp4_gemv,
              "nvfp4_gemv(Tensor x, Tensor weight, Tensor scales, Tensor global_scale, Tensor? bias, bool swizzled, "
              "Tensor(a!) out) -> ()",
              nvfp4_gemv)
