// torch.ops.gb10.moe_decode
#include "gb10/moe_checks.h"
#include "moe_decode.h"

namespace {

using namespace gb10::torch_op;

namespace decode = gb10::moe_decode;

constexpr char kOp[] = "moe_decode";

void run(MoeTensors const& tensors, MoeNumbers const& numbers) {
  decode::Arguments a{};
  auto const workspace_bytes = [](std::int64_t tokens, std::int64_t topk, std::int64_t, std::int64_t, std::int64_t intermediate,
                                  std::int64_t shared_intermediate) {
    return decode::workspace_bytes(tokens, topk, intermediate, shared_intermediate);
  };
  static_cast<gb10::moe::Layer&>(a) =
      check_layer(kOp, tensors, numbers, {gb10::kMaxTokens, decode::kMaxWidth, decode::kMaxExperts}, workspace_bytes);
  a.act = tensors.workspace.data_ptr();
  OnDeviceOf const device(kOp, tensors.x);
  device.check(decode::launch(a, number_of(tensors.x), numbers.swizzled, device.stream()));
}

}  // namespace

GB10_OPERATOR(moe_decode, "moe_decode" GB10_MOE_SCHEMA, moe_operator<run>)
