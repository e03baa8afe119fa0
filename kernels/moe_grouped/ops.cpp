// torch.ops.gb10.moe_grouped
#include "gb10/moe_checks.h"
#include "moe_grouped.h"

namespace {

using namespace gb10::torch_op;

namespace grouped = gb10::moe_grouped;

constexpr char kOp[] = "moe_grouped";

void run(MoeTensors const& tensors, MoeNumbers const& numbers) {
  grouped::Arguments a{};
  static_cast<gb10::moe::Layer&>(a) =
      check_layer(kOp, tensors, numbers, {grouped::kMaxTokens, grouped::kMaxWidth, grouped::kMaxExperts}, grouped::workspace_bytes);
  a.workspace = tensors.workspace.data_ptr();
  OnDeviceOf const device(kOp, tensors.x);
  device.check(grouped::launch(a, number_of(tensors.x), numbers.swizzled, device.stream()));
}

}  // namespace

GB10_OPERATOR(moe_grouped, "moe_grouped" GB10_MOE_SCHEMA, moe_operator<run>)
