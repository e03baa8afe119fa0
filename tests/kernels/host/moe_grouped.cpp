// The kernels of kernels/moe_grouped on the CPU against float64: ids of every kind, layouts, activations, tiles of every size.
#include "moe_layer.h"

#include "moe_grouped/multiply.cuh"
#include "moe_grouped/warpgroups.cuh"

namespace {

using namespace gb10::moe_grouped;
using host::moe::Activation;
using host::moe::Case;
using host::moe::Ids;
using host::moe::Named;

bool by_warpgroups = false;
int chunks = 1;  // that share the grouping

// The relative L2 error.
template <typename T>
double error(Case const& c) {
  return host::moe::error<T>(c, [&](gb10::moe::Layer const& layer, auto&& memory) {
    Arguments a{};
    static_cast<gb10::moe::Layer&>(a) = layer;
    Plan p{};
    p.pairs = c.tokens * c.topk;
    p.shared_intermediate = c.shared;
    p.tile = by_warpgroups ? kWideTile : tile_tokens(p.pairs, c.experts);
    p.by_warpgroups = by_warpgroups;
    p.at = workspace_of(c.tokens, c.topk, c.experts, c.hidden, c.intermediate, c.shared);
    a.workspace = memory(p.at.bytes);
    unsigned const group_threads = 96;
    p.chunks = chunks;
    unsigned const blocks = p.chunks;
    host::run({blocks + 2, 1, 1}, {group_threads, 1, 1}, group_bytes(c.experts), [&] { count<T>(a, p); });
    if (blocks > 1) host::run({blocks, 1, 1}, {group_threads, 1, 1}, group_bytes(c.experts), [&] { group(a, p); });
    auto const of_tile = [&]<int kTile>() {
      int const stages = c.columns;
      auto const run = [&](bool down, int rows, auto kernel) {
        int const row_tiles = (rows + rows_of_block(down) - 1) / rows_of_block(down);
        host::run({unsigned(p.at.tile_limit * row_tiles), 1, 1}, {kThreads, 1, 1}, multiply_bytes<kTile>(stages),
                  [&] { kernel(a, p, row_tiles, stages); });
      };
      run(false, std::max(c.intermediate, c.shared), c.swizzled ? multiply<T, kTile, false, true> : multiply<T, kTile, false, false>);
      run(true, c.hidden, c.swizzled ? multiply<T, kTile, true, true> : multiply<T, kTile, true, false>);
    };
    if (by_warpgroups) {
      auto const run = [&](bool down, int rows, auto kernel) {
        int const row_tiles = (rows + rows_of_item(down) - 1) / rows_of_item(down);
        host::run({3, 1, 1}, {kItemThreads, 1, 1}, kSharedBytes, [&] { kernel(a, p, row_tiles); });
      };
      run(false, std::max(c.intermediate, c.shared), multiply_by_warpgroups<false>);
      run(true, c.hidden, multiply_by_warpgroups<true>);
    } else if (p.tile == kSmallTile) of_tile.template operator()<kSmallTile>();
    else of_tile.template operator()<kLargeTile>();
    host::run({unsigned(c.tokens), 1, 1}, {64, 1, 1}, combine_bytes(c.topk), [&] { combine<T>(a, p); });
  });
}

template <typename T>
void check(char const* type, char const* name, Case const& c) {
  // act and parts are rounded to T.
  host::moe::judge(type, name, c, error<T>(c), std::is_same_v<T, __half> ? 1e-3 : 5e-3);
}

// `columns` of the case: places of the ring.
void both(char const* name, Case c) {
  c.columns = kStages;
  check<__nv_bfloat16>("bf16", name, c);
  c.columns = kFewerStages;
  check<__half>("f16", name, c);
}

int runs_of_warpgroups = 0;
void warpgroups(char const* name, Case c) {
  chunks = 1 + runs_of_warpgroups++ % 3;
  by_warpgroups = true;
  check<__nv_bfloat16>("bf16, warpgroups", name, c);
  by_warpgroups = false;
  chunks = 1;
}

}  // namespace

int main() {
  warpgroups("one token", {.tokens = 1, .topk = 2, .experts = 3, .hidden = 256, .intermediate = 64, .shared = 0, .kind = Ids::kDistinct});
  warpgroups("shared", {.tokens = 17, .topk = 3, .experts = 4, .hidden = 320, .intermediate = 64, .shared = 128});
  warpgroups("many steps, rows in two items", {.tokens = 19, .topk = 3, .experts = 3, .hidden = 704, .intermediate = 320, .shared = 64});
  warpgroups("int64, map, up first, two globals",
             {.tokens = 19, .topk = 4, .experts = 4, .hidden = 128, .intermediate = 64, .shared = 64, .wide = true, .map = true, .globals = 2, .up_first = true});
  for (int tokens : {8, 48, 49, 96, 97, 160, 161, 176, 177, 400}) {
    warpgroups("tiles", {.tokens = tokens, .topk = 1, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 64, .kind = Ids::kAllEqual});
  }
  warpgroups("weight on input", {.tokens = 18, .topk = 1, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64, .on_input = true});
  warpgroups("no ids", {.tokens = 18, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 0, .kind = Ids::kNone});
  warpgroups("no ids, shared", {.tokens = 18, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 128, .kind = Ids::kNone});
  warpgroups("an infinite token", {.tokens = 20, .topk = 2, .experts = 2, .hidden = 320, .intermediate = 320, .shared = 64, .kind = Ids::kDistinct, .infinite = 2});
  warpgroups("a narrower shared expert", {.tokens = 10, .topk = 2, .experts = 4, .hidden = 128, .intermediate = 192, .shared = 64});
  warpgroups("swigluoai", host::moe::with({"swigluoai", Activation::kSwish, true, true, 7, 1.702f, 1},
                                          {.tokens = 4, .topk = 2, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64}));
  both("one token", {.tokens = 1, .topk = 2, .experts = 3, .hidden = 256, .intermediate = 64, .shared = 0, .kind = Ids::kDistinct});
  both("shared", {.tokens = 17, .topk = 3, .experts = 4, .hidden = 320, .intermediate = 64, .shared = 128});
  both("swizzled", {.tokens = 20, .topk = 3, .experts = 3, .hidden = 192, .intermediate = 320, .shared = 64, .swizzled = true});
  both("int64, map, up first, two globals",
       {.tokens = 19, .topk = 4, .experts = 4, .hidden = 128, .intermediate = 64, .shared = 64, .wide = true, .map = true, .globals = 2, .up_first = true});
  both("equal ids, many tiles", {.tokens = 65, .topk = 2, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 64, .kind = Ids::kAllEqual});
  both("weight on input", {.tokens = 18, .topk = 1, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64, .on_input = true});
  both("no ids", {.tokens = 18, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 0, .kind = Ids::kNone});
  both("no ids, shared", {.tokens = 18, .topk = 3, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 128, .kind = Ids::kNone});
  for (int tokens : {8, 9, 16, 17, 32, 33, 48, 49}) {
    both("tiles", {.tokens = tokens, .topk = 1, .experts = 2, .hidden = 64, .intermediate = 64, .shared = 0, .kind = Ids::kAllEqual});
  }
  both("small tiles", {.tokens = 31, .topk = 2, .experts = 4, .hidden = 192, .intermediate = 128, .shared = 64});
  both("many experts", {.tokens = 5, .topk = 2, .experts = 200, .hidden = 64, .intermediate = 64, .shared = 0});
  both("many steps", {.tokens = 3, .topk = 1, .experts = 1, .hidden = 576, .intermediate = 384, .shared = 0, .kind = Ids::kDistinct});
  both("an infinite token", {.tokens = 20, .topk = 2, .experts = 2, .hidden = 320, .intermediate = 320, .shared = 64, .kind = Ids::kDistinct, .infinite = 2});
  both("a narrower shared expert", {.tokens = 10, .topk = 2, .experts = 4, .hidden = 128, .intermediate = 192, .shared = 64});
  for (Named const& n : {Named{"gelu_tanh", Activation::kGeluTanh, true, false, INFINITY, 1, 0},
                         {"swigluoai", Activation::kSwish, true, true, 7, 1.702f, 1},
                         {"relu2_no_mul", Activation::kRelu2, false, false, INFINITY, 1, 0}}) {
    both(n.name, host::moe::with(n, {.tokens = 4, .topk = 2, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64}));
  }
  return host::moe::verdict();
}
