// The kernels of kernels/moe_decode on the CPU against float64: ids of every kind, layouts, activations, cuts of the work.
#include "moe_layer.h"

#include "moe_decode/down.cuh"
#include "moe_decode/gate_up.cuh"
#include "moe_decode/gate_up_one.cuh"

namespace {

using namespace gb10::moe_decode;
using host::moe::Activation;
using host::moe::Case;
using host::moe::Ids;
using host::moe::Named;

// The relative L2 error.
template <typename T>
double error(Case const& c, bool one) {
  return host::moe::error<T>(c, [&](gb10::moe::Layer const& layer, auto&& memory) {
    Arguments a{};
    static_cast<gb10::moe::Layer&>(a) = layer;
    a.act = memory(workspace_bytes(c.tokens, c.topk, c.intermediate, c.shared));
    bool const bfloat16 = std::is_same_v<T, __nv_bfloat16>;
    Sizes const sizes = sizes_of(a);
    GateUpPlan const first_plan = gate_up_plan(a, sizes, bfloat16);
    int const columns = c.columns;
    DownPlan const second_plan = down_plan(sizes, columns, bfloat16);
    auto const first = c.swizzled ? gate_up<true> : gate_up<false>;
    auto const second = c.swizzled ? down<true> : down<false>;
    unsigned const threads = 32 * c.warps;
    if (one && takes_one(a)) {
      OnePlan const plan = one_plan(a, sizes, c.blocks, bfloat16);
      auto const kernel = c.swizzled ? gate_up_one<true> : gate_up_one<false>;
      host::run({unsigned(c.blocks), 1, 1}, {threads, 1, 1}, one_bytes(plan, c.warps), [&] { kernel(a, plan); });
    } else {
      host::run({unsigned(c.blocks), 1, 1}, {threads, 1, 1}, gate_up_bytes(a, sizes, c.warps), [&] { first(a, first_plan); });
    }
    host::run({unsigned(std::min(c.blocks, c.hidden / 16)), 1, 1}, {threads, 1, 1},
              down_bytes(a, sizes, c.warps, columns), [&] { second(a, second_plan); });
  });
}

template <typename T>
void check(char const* type, char const* name, Case const& c) {
  for (bool one : {false, true}) {
    if (!one || c.tokens == 1) host::moe::judge(type, name, c, error<T>(c, one), std::is_same_v<T, __half> ? 1e-3 : 2e-3);
  }
}

void both(char const* name, Case const& c) {
  check<__nv_bfloat16>("bf16", name, c);
  check<__half>("f16", name, c);
}

}  // namespace

int main() {
  both("one token", {.tokens = 1, .topk = 2, .experts = 3, .hidden = 256, .intermediate = 64, .shared = 0, .kind = Ids::kDistinct});
  both("one token, map, equal ids",
       {.tokens = 1, .topk = 7, .experts = 4, .hidden = 576, .intermediate = 192, .shared = 64, .wide = true, .map = true, .globals = 2, .warps = 5});
  both("one token, up first, swizzled",
       {.tokens = 1, .topk = 3, .experts = 5, .hidden = 1344, .intermediate = 64, .shared = 320, .swizzled = true, .globals = 2, .up_first = true, .warps = 3, .blocks = 2});
  both("one token, no ids", {.tokens = 1, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 64, .kind = Ids::kNone});
  both("one token, nothing", {.tokens = 1, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 0, .kind = Ids::kNone});
  both("one token, one warp", {.tokens = 1, .topk = 4, .experts = 6, .hidden = 320, .intermediate = 64, .shared = 64, .warps = 1, .blocks = 1});
  both("one infinite token", {.tokens = 1, .topk = 2, .experts = 2, .hidden = 320, .intermediate = 64, .shared = 64, .kind = Ids::kDistinct, .infinite = 0});
  both("one token, a limit", {.tokens = 1, .topk = 4, .experts = 9, .hidden = 256, .intermediate = 128, .shared = 0, .kind = Ids::kDistinct, .activation = Activation::kSwigluStep, .limit = 0.2f, .warps = 6});
  both("half tiles", {.tokens = 3, .topk = 3, .experts = 4, .hidden = 320, .intermediate = 64, .shared = 128});
  both("swizzled", {.tokens = 2, .topk = 3, .experts = 3, .hidden = 192, .intermediate = 320, .shared = 64, .swizzled = true, .warps = 3});
  both("int64, map, up first, two globals",
       {.tokens = 5, .topk = 4, .experts = 4, .hidden = 128, .intermediate = 64, .shared = 64, .wide = true, .map = true, .globals = 2, .up_first = true});
  both("equal ids", {.tokens = 16, .topk = 2, .experts = 2, .hidden = 128, .intermediate = 64, .shared = 64, .kind = Ids::kAllEqual});
  both("equal ids, weight on input",
       {.tokens = 2, .topk = 3, .experts = 2, .hidden = 128, .intermediate = 64, .shared = 0, .kind = Ids::kAllEqual, .on_input = true});
  both("no ids", {.tokens = 2, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 0, .kind = Ids::kNone});
  both("no ids, shared", {.tokens = 9, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 128, .kind = Ids::kNone});
  both("few columns", {.tokens = 11, .topk = 4, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64, .columns = 4});
  both("one warp", {.tokens = 2, .topk = 2, .experts = 3, .hidden = 1344, .intermediate = 64, .shared = 0, .warps = 1});
  both("more warps than tiles", {.tokens = 6, .topk = 2, .experts = 3, .hidden = 64, .intermediate = 128, .shared = 0, .warps = 4});
  both("many pairs", {.tokens = 16, .topk = 32, .experts = 3, .hidden = 64, .intermediate = 64, .shared = 0, .warps = 4});
  for (int tokens : {4, 7, 8, 10, 13}) {
    both("tokens", {.tokens = tokens, .topk = 3, .experts = 5, .hidden = 128, .intermediate = 64, .shared = 0, .warps = 3});
  }
  both("many parts", {.tokens = 3, .topk = 3, .experts = 5, .hidden = 576, .intermediate = 320, .shared = 64, .warps = 5});
  both("an infinite token", {.tokens = 4, .topk = 2, .experts = 2, .hidden = 320, .intermediate = 320, .shared = 64, .kind = Ids::kDistinct, .infinite = 2});
  both("one block", {.tokens = 9, .topk = 2, .experts = 4, .hidden = 64, .intermediate = 576, .shared = 64, .columns = 1, .blocks = 1});
  both("more blocks than tiles", {.tokens = 1, .topk = 2, .experts = 4, .hidden = 832, .intermediate = 64, .shared = 0, .warps = 4, .blocks = 20});
  both("a shared expert wider than the others", {.tokens = 10, .topk = 2, .experts = 4, .hidden = 128, .intermediate = 64, .shared = 576});
  for (Named const& n : {Named{"gelu", Activation::kGelu, true, false, INFINITY, 1, 0},
                         {"gelu_tanh", Activation::kGeluTanh, true, false, INFINITY, 1, 0},
                         {"silu with a limit", Activation::kSwish, true, false, 0.3f, 1, 0},
                         {"swigluoai", Activation::kSwish, true, true, 7, 1.702f, 1},
                         {"swigluoai_uninterleave", Activation::kSwish, true, false, 0.5f, 1.3f, 0.7f},
                         {"swiglustep", Activation::kSwigluStep, true, false, 0.2f, 1, 0},
                         {"situ", Activation::kSitu, true, false, INFINITY, 0.6f, 0},
                         {"situ, up bounded", Activation::kSitu, true, false, INFINITY, 0.6f, 0.4f},
                         {"silu_no_mul", Activation::kSwish, false, false, INFINITY, 1, 0},
                         {"gelu_no_mul", Activation::kGelu, false, false, INFINITY, 1, 0},
                         {"gelu_tanh_no_mul", Activation::kGeluTanh, false, false, INFINITY, 1, 0},
                         {"relu2_no_mul", Activation::kRelu2, false, false, INFINITY, 1, 0}}) {
    both(n.name, host::moe::with(n, {.tokens = 2, .topk = 2, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64}));
  }
  return host::moe::verdict();
}
