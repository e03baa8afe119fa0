// The kernels of kernels/moe_decode on the CPU against float64: ids of every kind, layouts, activations, cuts of the work.
#include "numbers.h"

#include "moe_decode/down.cuh"
#include "moe_decode/gate_up.cuh"

namespace {

using namespace gb10::moe_decode;
using gb10::moe::Activation;

struct Weights {
  int rows, k, globals;
  std::vector<std::uint8_t> codes, linear, scales;
  std::vector<float> global;
  Matrix matrix;

  Weights(int count, int rows, int k, int globals, bool swizzled) : rows(rows), k(k), globals(globals) {
    int const columns = k / 16;
    codes.resize(std::size_t(count) * rows * k / 2);
    linear.resize(std::size_t(count) * rows * columns);
    for (auto& byte : codes) byte = random_bits();
    for (auto& byte : linear) byte = 0x20 + random_bits() % 0x20;
    for (int i = 0; i < count * globals; ++i) global.push_back(float(uniform(0.5, 2) / std::sqrt(double(k)) / 2));
    scales = linear;
    int const padded = swizzled ? (rows + 127) / 128 * 128 : rows;
    if (swizzled) {
      scales.assign(std::size_t(count) * padded * columns, 0x7F);
      for (int e = 0; e < count; ++e) {
        for (int row = 0; row < rows; ++row) {
          for (int column = 0; column < columns; ++column) {
            scales[std::size_t(e) * padded * columns + (row / 128 * (columns / 4) + column / 4) * 512 + row % 32 * 16 +
                   row % 128 / 32 * 4 + column % 4] = linear[(std::size_t(e) * rows + row) * columns + column];
          }
        }
      }
    }
    matrix = {codes.data(), scales.data(), global.data(), std::int64_t(padded) * columns, rows, k, globals};
  }

  double dot(int e, int row, std::vector<double> const& x, int part) const {
    double sum = 0;
    std::size_t const first = (std::size_t(e) * rows + row) * k;
    for (int i = 0; i < k; ++i) {
      sum += e2m1(codes[(first + i) / 2] >> (i % 2 * 4) & 15) * e4m3(linear[(first + i) / 16]) * x[i];
    }
    return sum * global[e * globals + (globals == 2 ? part : 0)];
  }
};

enum class Ids { kRandom, kAllEqual, kDistinct, kNone };

struct Case {
  int tokens, topk, experts, hidden, intermediate, shared;
  bool swizzled = false;
  Ids kind = Ids::kRandom;
  bool wide = false, map = false, on_input = false;
  int globals = 1;
  bool up_first = false;
  Activation activation = Activation::kSwish;
  bool gated = true, interleaved = false;
  float limit = INFINITY, alpha = 1, beta = 0;
  int warps = 2, columns = 2, blocks = 3;
  bool deep = false;  // down keeps more parts in flight
  int infinite = -1;  // a token with an infinity in x: it alone has no finite result
};

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

double activation_of(Case const& c, double g, double u) {
  double const limit = c.limit, alpha = c.alpha, beta = c.beta;
  switch (c.activation) {
    case Activation::kSwish:
      g = std::min(g, limit);
      return g * sigmoid(alpha * g) * (c.gated ? std::clamp(u, -limit, limit) + beta : 1);
    case Activation::kGelu: return 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * u;
    case Activation::kGeluTanh:
      return 0.5 * g * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g))) * u;
    case Activation::kRelu2: return g > 0 ? g * g * u : 0;
    case Activation::kSwigluStep: return std::min(g * sigmoid(g), limit) * std::clamp(u, -limit, limit);
    default: return alpha * std::tanh(g / alpha) * sigmoid(g) * (beta > 0 ? beta * std::tanh(u / beta) : u);
  }
}

// The relative L2 error.
template <typename T>
double error(Case const& c) {
  int const up = c.gated ? 2 : 1;
  Weights const w13(c.experts, up * c.intermediate, c.hidden, c.globals, c.swizzled);
  Weights const w2(c.experts, c.hidden, c.intermediate, 1, c.swizzled);
  Weights const shared13(1, up * std::max(c.shared, 64), c.hidden, c.globals, c.swizzled);
  Weights const shared2(1, c.hidden, std::max(c.shared, 64), 1, c.swizzled);
  std::vector<T> x(c.tokens * c.hidden), out(c.tokens * c.hidden);
  std::normal_distribution<float> normal;
  for (auto& value : x) value = T(normal(random_bits));
  if (c.infinite >= 0) x[c.infinite * c.hidden + 3] = T(INFINITY);
  int const names = c.map ? 2 * c.experts : c.experts;
  std::vector<int> map(names, -1);
  if (c.map) {
    for (int e = 0; e < c.experts; ++e) map[2 * e + e % 2] = (e + 1) % c.experts;
    map[c.experts % 2] = c.experts;  // beyond the local experts
  }
  std::vector<long long> wide;
  std::vector<int> ids;
  std::vector<float> weights, multiplier;
  for (int token = 0; token < c.tokens; ++token) {
    multiplier.push_back(float(uniform(0.2, 0.8)));
    int const start = random_bits() % names;
    for (int slot = 0; slot < c.topk; ++slot) {
      long long id = random_bits() % names;
      if (c.kind == Ids::kAllEqual) id = 1;
      if (c.kind == Ids::kDistinct) id = (start + slot) % names;
      if (c.kind == Ids::kNone) id = -1;
      if (c.kind == Ids::kRandom && random_bits() % 8 == 0) id = -1;
      if (c.kind == Ids::kRandom && random_bits() % 8 == 0) id = c.wide ? (1ll << 32) + 3 : names;
      wide.push_back(id);
      ids.push_back(int(id));
      weights.push_back(float(uniform(0.05, 0.4)));
    }
  }
  std::vector<uint4> act(workspace_bytes(c.tokens, c.topk, c.intermediate, c.shared) / 16 + 1);
  std::memset(static_cast<void*>(act.data()), 0xFF, act.size() * 16);
  std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));

  Arguments a{};
  a.x = x.data();
  a.ids = c.wide ? static_cast<void const*>(wide.data()) : ids.data();
  a.weights = weights.data();
  a.expert_map = c.map ? map.data() : nullptr;
  a.map_size = c.map ? names : 0;
  a.act = act.data();
  a.out = out.data();
  a.w13 = w13.matrix;
  a.w2 = w2.matrix;
  if (c.shared) {
    a.shared_w13 = shared13.matrix;
    a.shared_w2 = shared2.matrix;
    a.shared_multiplier = multiplier.data();
  }
  a.tokens = c.tokens, a.topk = c.topk, a.experts = c.experts;
  a.activation = c.activation, a.gated = c.gated, a.interleaved = c.interleaved, a.up_first = c.up_first;
  a.wide_ids = c.wide, a.router_weight_on_input = c.on_input;
  a.limit = c.limit, a.alpha = c.alpha, a.beta = c.beta;

  bool const bfloat16 = std::is_same_v<T, __nv_bfloat16>;
  Sizes const sizes = sizes_of(a);
  GateUpPlan const first_plan = gate_up_plan(a, sizes, bfloat16);
  int const columns = c.columns;
  DownPlan const second_plan = down_plan(sizes, columns, bfloat16);
  auto const first = c.swizzled ? gate_up<true> : gate_up<false>;
  auto const second = c.deep ? (c.swizzled ? down<true, kDownDeep> : down<false, kDownDeep>)
                             : (c.swizzled ? down<true, kDownDepth> : down<false, kDownDepth>);
  unsigned const threads = 32 * c.warps;
  host::run({unsigned(c.blocks), 1, 1}, {threads, 1, 1}, gate_up_bytes(a, sizes, c.warps), [&] { first(a, first_plan); });
  host::run({unsigned(std::min(c.blocks, c.hidden / 16)), 1, 1}, {threads, 1, 1}, down_bytes(a, sizes, c.warps, c.deep ? kDownDeep : kDownDepth, columns),
            [&] { second(a, second_plan); });

  double wrong = 0, size = 0;
  for (int token = 0; token < c.tokens; ++token) {
    if (token == c.infinite) {
      for (int row = 0; row < c.hidden; ++row) wrong += std::isfinite(float(out[token * c.hidden + row]));
      continue;
    }
    std::vector<double> in(c.hidden), y(c.hidden);
    for (int k = 0; k < c.hidden; ++k) in[k] = float(x[token * c.hidden + k]);
    auto const expert = [&](Weights const& one, Weights const& two, int e, double before, double after) {
      int const channels = two.k;
      std::vector<double> middle(channels);
      for (int i = 0; i < channels; ++i) {
        int const gate = c.interleaved ? 2 * i : c.gated && c.up_first ? channels + i : i;
        int const other = c.interleaved ? 2 * i + 1 : c.up_first ? i : channels + i;
        middle[i] = activation_of(c, before * one.dot(e, gate, in, 0), c.gated ? before * one.dot(e, other, in, 1) : 1);
      }
      for (int row = 0; row < c.hidden; ++row) y[row] += after * two.dot(e, row, middle, 0);
    };
    for (int slot = 0; slot < c.topk; ++slot) {
      long long const id = wide[token * c.topk + slot];
      if (id < 0 || id >= names) continue;
      int const e = c.map ? map[id] : int(id);
      if (e < 0 || e >= c.experts) continue;
      double const weight = weights[token * c.topk + slot];
      expert(w13, w2, e, c.on_input ? weight : 1, c.on_input ? 1 : weight);
    }
    if (c.shared) expert(shared13, shared2, 0, 1, multiplier[token]);
    for (int row = 0; row < c.hidden; ++row) {
      double const difference = double(float(out[token * c.hidden + row])) - y[row];
      wrong += difference * difference;
      size += y[row] * y[row];
    }
  }
  return size > 0 ? std::sqrt(wrong / size) : std::sqrt(wrong);
}

int runs = 0, failures = 0;

template <typename T>
void check(char const* type, char const* name, Case const& c) {
  double const is = error<T>(c);
  ++runs;
  if (is <= (std::is_same_v<T, __half> ? 1e-3 : 2e-3)) return;
  ++failures;
  std::printf("%s %s: %d tokens, topk %d, %d experts, %d x %d, shared %d, %d warps: error %g\n", type, name, c.tokens, c.topk, c.experts,
              c.hidden, c.intermediate, c.shared, c.warps, is);
}

void both(char const* name, Case const& c) {
  check<__nv_bfloat16>("bf16", name, c);
  check<__half>("f16", name, c);
}

}  // namespace

int main() {
  both("one token", {.tokens = 1, .topk = 2, .experts = 3, .hidden = 256, .intermediate = 64, .shared = 0, .kind = Ids::kDistinct});
  both("half tiles", {.tokens = 3, .topk = 3, .experts = 4, .hidden = 320, .intermediate = 64, .shared = 128});
  both("swizzled", {.tokens = 2, .topk = 3, .experts = 3, .hidden = 192, .intermediate = 320, .shared = 64, .swizzled = true, .warps = 3});
  both("int64, map, up first, two globals",
       {.tokens = 5, .topk = 4, .experts = 4, .hidden = 128, .intermediate = 64, .shared = 64, .wide = true, .map = true, .globals = 2, .up_first = true});
  both("equal ids", {.tokens = 16, .topk = 2, .experts = 2, .hidden = 128, .intermediate = 64, .shared = 64, .kind = Ids::kAllEqual});
  both("equal ids, weight on input",
       {.tokens = 2, .topk = 3, .experts = 2, .hidden = 128, .intermediate = 64, .shared = 0, .kind = Ids::kAllEqual, .on_input = true});
  both("deep", {.tokens = 1, .topk = 5, .experts = 6, .hidden = 128, .intermediate = 576, .shared = 64, .kind = Ids::kDistinct, .deep = true});
  both("deep, swizzled",
       {.tokens = 3, .topk = 2, .experts = 3, .hidden = 64, .intermediate = 320, .shared = 64, .swizzled = true, .deep = true});
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
  struct Named {
    char const* name;
    Activation activation;
    bool gated, interleaved;
    float limit, alpha, beta;
  };
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
    both(n.name, {.tokens = 2, .topk = 2, .experts = 3, .hidden = 128, .intermediate = 64, .shared = 64, .activation = n.activation,
                  .gated = n.gated, .interleaved = n.interleaved, .limit = n.limit, .alpha = n.alpha, .beta = n.beta});
  }
  std::printf("%d runs, %d wrong\n", runs, failures);
  return failures != 0;
}
