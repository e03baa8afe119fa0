// torch.ops.gb10.fp8_gemv
#include "fp8_gemv.h"
#include "gb10/op_checks.h"
#include "gb10/torch_op.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "fp8_gemv";

void fp8_gemv(Tensor x, Tensor weight, Tensor scales, std::optional<Tensor> bias, Tensor out) {
  using namespace gb10::torch_op;
  namespace gemv = gb10::fp8_gemv;

  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"weight", &weight, {ScalarType::Float8_e4m3fn}, 16},
                                {"scales", &scales, {ScalarType::Float}, 4},
                                {"bias", given(bias), {x.scalar_type()}, 2},
                                {"out", &out, {x.scalar_type()}, 2}};
  check_dtypes(kOp, arguments);

  std::int64_t const tokens = check_tokens(kOp, x);
  std::int64_t const columns = check_columns(kOp, x, gemv::kColumnUnit, gemv::kMaxColumns);
  check_shape(kOp, "weight", weight, {-1, -1});
  std::int64_t const rows = weight.size(0);
  require(rows >= 1 && rows <= gemv::kMaxRows, kOp,
          "weight has " + std::to_string(rows) + " rows (N); N must be 1 to " + std::to_string(gemv::kMaxRows));
  check_shape(kOp, "weight", weight, {rows, columns});

  std::int64_t const block_rows = (rows + gemv::kScaleBlock - 1) / gemv::kScaleBlock;
  std::int64_t const block_columns = (columns + gemv::kScaleBlock - 1) / gemv::kScaleBlock;
  bool const per_row = (scales.dim() == 1 || (scales.dim() == 2 && scales.size(1) == 1)) && scales.size(0) == rows;
  bool const per_block = scales.dim() == 2 && scales.size(0) == block_rows && scales.size(1) == block_columns;
  require(per_row || per_block, kOp,
          "scales has shape " + shape_of(scales) + "; it must be [" + std::to_string(rows) + "] or [" + std::to_string(rows) +
              ", 1] (one a row), or [" + std::to_string(block_rows) + ", " + std::to_string(block_columns) +
              "] (one a block of 128 x 128)");
  if (bias) check_shape(kOp, "bias", *bias, {rows});
  check_shape(kOp, "out", out, {tokens, rows});

  check_layouts_and_devices(kOp, arguments);

  gemv::Arguments a{};
  a.x = x.data_ptr();
  a.weight = weight.data_ptr();
  a.scales = static_cast<float const*>(scales.data_ptr());
  a.bias = bias ? bias->data_ptr() : nullptr;
  a.out = out.data_ptr();
  a.tokens = static_cast<int>(tokens);
  a.rows = static_cast<int>(rows);
  a.columns = static_cast<int>(columns);

  OnDeviceOf const device(kOp, x);
  device.check(gemv::launch(a, number_of(x), per_row ? gemv::Scaling::kRow : gemv::Scaling::kBlock, device.stream()));
}

}  // namespace

GB10_OPERATOR(fp8_gemv, "fp8_gemv(Tensor x, Tensor weight, Tensor scales, Tensor? bias, Tensor(a!) out) -> ()", fp8_gemv)
