// torch.ops.gb10.fp8_gemv
#include "fp8_gemv.h"
#include "gb10/torch_op.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "fp8_gemv";

void fp8_gemv(Tensor x, Tensor weight, Tensor scales, std::optional<Tensor> bias, Tensor out) {
  using namespace gb10::torch_op;
  namespace gemv = gb10::fp8_gemv;

  check_dtype(kOp, "x", x, {ScalarType::BFloat16, ScalarType::Half});
  check_dtype(kOp, "weight", weight, {ScalarType::Float8_e4m3fn});
  check_dtype(kOp, "scales", scales, {ScalarType::Float});
  if (bias) check_dtype(kOp, "bias", *bias, {x.scalar_type()});
  check_dtype(kOp, "out", out, {x.scalar_type()});

  check_shape(kOp, "x", x, {-1, -1});
  check_shape(kOp, "weight", weight, {-1, -1});
  std::int64_t const tokens = x.size(0), columns = x.size(1), rows = weight.size(0);
  require(tokens >= 1 && tokens <= gemv::kMaxTokens, kOp,
          "x has " + std::to_string(tokens) + " rows (tokens); it must have 1 to " + std::to_string(gemv::kMaxTokens));
  require(columns >= gemv::kColumnUnit && columns % gemv::kColumnUnit == 0 && columns <= gemv::kMaxColumns, kOp,
          "x has " + std::to_string(columns) + " columns (K); K must be a multiple of " + std::to_string(gemv::kColumnUnit) +
              ", at most " + std::to_string(gemv::kMaxColumns));
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

  check_layout(kOp, "x", x, 16);
  check_layout(kOp, "weight", weight, 16);
  check_layout(kOp, "scales", scales, 4);
  if (bias) check_layout(kOp, "bias", *bias, 2);
  check_layout(kOp, "out", out, 2);

  check_device(kOp, "x", x, x);
  check_device(kOp, "weight", weight, x);
  check_device(kOp, "scales", scales, x);
  if (bias) check_device(kOp, "bias", *bias, x);
  check_device(kOp, "out", out, x);

  gemv::Arguments arguments{};
  arguments.x = x.data_ptr();
  arguments.weight = weight.data_ptr();
  arguments.scales = static_cast<float const*>(scales.data_ptr());
  arguments.bias = bias ? bias->data_ptr() : nullptr;
  arguments.out = out.data_ptr();
  arguments.tokens = static_cast<int>(tokens);
  arguments.rows = static_cast<int>(rows);
  arguments.columns = static_cast<int>(columns);

  OnDeviceOf const device(kOp, x);
  device.check(gemv::launch(arguments, x.scalar_type() == ScalarType::Half ? gemv::Number::kFloat16 : gemv::Number::kBFloat16,
                            per_row ? gemv::Scaling::kRow : gemv::Scaling::kBlock, device.stream()));
}

}  // namespace

GB10_OPERATOR(fp8_gemv, "fp8_gemv(Tensor x, Tensor weight, Tensor scales, Tensor? bias, Tensor(a!) out) -> ()", fp8_gemv)
