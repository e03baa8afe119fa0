// torch.ops.gb10.bandwidth_read
#include "bandwidth.h"

#include "gb10/torch_op.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

constexpr char kOp[] = "bandwidth_read";
constexpr std::int64_t kMaxBlocks = 65536;

void bandwidth_read(Tensor x, Tensor out) {
  using namespace gb10::torch_op;
  Argument const arguments[] = {{"x", &x, {ScalarType::Byte}, 16}, {"out", &out, {ScalarType::Int}, 4}};
  check_dtypes(kOp, arguments);
  check_shape(kOp, "x", x, {-1});
  check_shape(kOp, "out", out, {-1});
  require(x.numel() > 0 && x.numel() % 16 == 0, kOp,
          "x has " + std::to_string(x.numel()) + " bytes; it must have a positive multiple of 16");
  require(out.numel() >= 1 && out.numel() <= kMaxBlocks, kOp,
          "out has " + std::to_string(out.numel()) + " elements; it must have 1 to " + std::to_string(kMaxBlocks));
  check_layouts_and_devices(kOp, arguments);

  OnDeviceOf const device(kOp, x);
  device.check(
      gb10::bandwidth::launch(x.data_ptr(), x.numel() / 16, out.data_ptr(), static_cast<int>(out.numel()), device.stream()));
}

}  // namespace

GB10_OPERATOR(bandwidth_read, "bandwidth_read(Tensor x, Tensor(a!) out) -> ()", bandwidth_read)
