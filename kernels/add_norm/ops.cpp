// torch.ops.gb10.add_norm
#include "add_norm.h"
#include "gb10/op_checks.h"
#include "gb10/torch_op.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "add_norm";

void add_norm(Tensor x, std::optional<Tensor> residual, Tensor weight, double epsilon, bool plus_one, Tensor normed,
              std::optional<Tensor> residual_out) {
  using namespace gb10::torch_op;
  namespace norm = gb10::add_norm;
  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"residual", given(residual), {x.scalar_type()}, 16},
                                {"weight", &weight, {x.scalar_type()}, 16},
                                {"normed", &normed, {x.scalar_type()}, 16},
                                {"residual_out", given(residual_out), {x.scalar_type()}, 16}};
  check_dtypes(kOp, arguments);
  std::int64_t const rows = check_tokens(kOp, x, std::numeric_limits<std::int32_t>::max());
  std::int64_t const columns = check_columns(kOp, x, norm::kColumnUnit, norm::kMaxColumns);
  if (residual) check_shape(kOp, "residual", *residual, {rows, columns});
  check_shape(kOp, "weight", weight, {columns});
  check_shape(kOp, "normed", normed, {rows, columns});
  if (residual_out) check_shape(kOp, "residual_out", *residual_out, {rows, columns});
  require(std::isfinite(epsilon) && epsilon >= 0, kOp, "epsilon is " + std::to_string(epsilon) + "; it must be 0 or more");
  check_layouts_and_devices(kOp, arguments);

  norm::Arguments p{};
  p.x = x.data_ptr();
  p.residual = residual ? residual->data_ptr() : nullptr;
  p.weight = weight.data_ptr();
  p.normed = normed.data_ptr();
  p.residual_out = residual_out ? residual_out->data_ptr() : nullptr;
  p.rows = static_cast<int>(rows);
  p.columns = static_cast<int>(columns);
  p.epsilon = static_cast<float>(epsilon);
  p.plus_one = plus_one;
  OnDeviceOf const device(kOp, x);
  device.check(norm::launch(p, number_of(x), device.stream()));
}

}  // namespace

GB10_OPERATOR(add_norm,
              "add_norm(Tensor x, Tensor? residual, Tensor weight, float epsilon, bool plus_one, Tensor(a!) normed, "
              "Tensor(b!)? residual_out) -> ()",
              add_norm)
