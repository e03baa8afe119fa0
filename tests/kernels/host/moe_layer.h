// A layer of a mixture of experts after routing: random weights and tokens, ids of every kind, and what it computes in float64.
#pragma once

#include "numbers.h"

#include "gb10/moe.h"

namespace host::moe {

using gb10::moe::Activation;
using gb10::moe::Layer;
using gb10::moe::Matrix;

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
  int warps = 2, columns = 2, blocks = 3;  // of moe_decode
  int infinite = -1;  // a token with an infinity in x: it alone has no finite result
};

inline double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

inline double activation_of(Case const& c, double g, double u) {
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

// The relative L2 error of what run(layer, memory) writes; memory(bytes) gives that many bytes of NaN.
template <typename T, typename Run>
double error(Case const& c, Run&& run) {
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
  std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));

  Layer a{};
  a.x = x.data();
  a.ids = c.wide ? static_cast<void const*>(wide.data()) : ids.data();
  a.weights = weights.data();
  a.expert_map = c.map ? map.data() : nullptr;
  a.map_size = c.map ? names : 0;
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

  std::vector<uint4> memory;
  run(a, [&](std::int64_t bytes) {
    memory.resize(bytes / 16 + 1);
    std::memset(static_cast<void*>(memory.data()), 0xFF, memory.size() * 16);
    return static_cast<void*>(memory.data());
  });

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

inline int runs = 0, failures = 0;

// Counts a run with this relative L2 error, and prints one that is more than the limit, or no number.
inline void judge(char const* type, char const* name, Case const& c, double error, double limit) {
  ++runs;
  if (error <= limit) return;
  ++failures;
  std::printf("%s %s: %d tokens, topk %d, %d experts, %d x %d, shared %d, %d warps: error %g\n", type, name, c.tokens, c.topk, c.experts,
              c.hidden, c.intermediate, c.shared, c.warps, error);
}

// Prints how many runs there were, and gives the program's exit status.
inline int verdict() {
  std::printf("%d runs, %d wrong\n", runs, failures);
  return failures != 0;
}

struct Named {
  char const* name;
  Activation activation;
  bool gated, interleaved;
  float limit, alpha, beta;
};

// The case with that activation.
inline Case with(Named const& n, Case c) {
  c.activation = n.activation, c.gated = n.gated, c.interleaved = n.interleaved;
  c.limit = n.limit, c.alpha = n.alpha, c.beta = n.beta;
  return c;
}

}  // namespace host::moe
