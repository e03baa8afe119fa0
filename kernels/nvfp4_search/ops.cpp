// torch.ops.gb10.nvfp4_search
#include <limits>

#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "nvfp4_search.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "nvfp4_search";

void nvfp4_search(Tensor weight, Tensor global_scale, Tensor codes, Tensor scales, Tensor squares) {
  using namespace gb10::torch_op;
  namespace search = gb10::nvfp4_search;

  Argument const arguments[] = {{"weight", &weight, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"global_scale", &global_scale, {ScalarType::Float}, 4},
                                {"codes", &codes, {ScalarType::Byte}, 8},
                                {"scales", &scales, {ScalarType::Float8_e4m3fn}, 1},
                                {"squares", &squares, {ScalarType::Double}, 8}};
  check_dtypes(kOp, arguments);

  check_shape(kOp, "weight", weight, {-1, -1});
  std::int64_t const rows = weight.size(0), k = weight.size(1);
  require(rows >= 1 && rows <= std::numeric_limits<std::int32_t>::max(), kOp,
          "weight has " + std::to_string(rows) + " rows; it must have at least one");
  check_width(kOp, "K (the columns of weight)", k, search::kBlock, std::int64_t{1} << 24);
  check_one(kOp, "global_scale", global_scale);
  check_shape(kOp, "codes", codes, {rows, k / 2});
  check_shape(kOp, "scales", scales, {rows, k / search::kBlock});
  check_shape(kOp, "squares", squares, {rows, 2});

  check_layouts_and_devices(kOp, arguments);

  search::Problem problem{};
  problem.weight = weight.data_ptr();
  problem.global_scale = static_cast<float const*>(global_scale.data_ptr());
  problem.codes = static_cast<std::uint8_t*>(codes.data_ptr());
  problem.scales = static_cast<std::uint8_t*>(scales.data_ptr());
  problem.squares = static_cast<double*>(squares.data_ptr());
  problem.rows = static_cast<int>(rows);
  problem.columns = static_cast<int>(k / search::kBlock);

  OnDeviceOf const device(kOp, weight);
  device.check(search::launch(problem, number_of(weight), device.stream()));
}

}  // namespace

GB10_OPERATOR(nvfp4_search,
              "nvfp4_search(Tensor weight, Tensor global_scale, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) squares) -> ()",
              nvfp4_search)
