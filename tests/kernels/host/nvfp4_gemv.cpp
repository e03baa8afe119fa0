// The kernel of kernels/nvfp4_gemv on the CPU against float64: every way to cut the work, for shapes of every kind.
#include "numbers.h"

#include "nvfp4_gemv/nvfp4_gemv.cuh"

namespace {

namespace gemv = gb10::nvfp4_gemv;

struct Case {
  int tokens, rows, k;
  bool swizzled, bias;
};

// Gives the largest error of an element, in units of what it may be: half a step of T and the loss of FP32 sums.
template <typename T>
double error(Case const& c, gemv::Plan const& plan, bool ahead) {
  auto const [tokens, rows, k, swizzled, with_bias] = c;
  int const columns = k / 16;
  std::vector<std::uint8_t> weight(std::size_t(rows) * k / 2), linear(std::size_t(rows) * columns), scales;
  for (auto& byte : weight) byte = random_bits();
  for (auto& byte : linear) byte = 0x20 + random_bits() % 0x30;
  scales = linear;
  if (swizzled) {
    int const tiles = columns / 4;
    scales.assign(std::size_t(gb10::divide_up(rows, 128)) * tiles * 512, 0x7F);
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        scales[(row / 128 * tiles + column / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + column % 4] =
            linear[row * columns + column];
      }
    }
  }
  std::normal_distribution<float> normal;
  std::vector<T> x(std::size_t(tokens) * k), bias(rows), out(std::size_t(tokens) * rows);
  for (auto& value : x) value = T(normal(random_bits));
  for (auto& value : bias) value = T(normal(random_bits));
  std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));
  float const global_scale = 0.01f;

  for (int first = 0; first < tokens; first += plan.tokens) {
    gemv::Problem const problem{x.data() + first * k,
                                weight.data(),
                                scales.data(),
                                &global_scale,
                                with_bias ? bias.data() : nullptr,
                                out.data() + first * rows,
                                std::min(plan.tokens, tokens - first),
                                rows,
                                k,
                                plan.sets};
    auto const kernel = problem.tokens > 8 ? (swizzled ? gemv::gemv<T, 2, true, false> : gemv::gemv<T, 2, false, false>)
                        : ahead            ? (swizzled ? gemv::gemv<T, 1, true, true> : gemv::gemv<T, 1, false, true>)
                                           : (swizzled ? gemv::gemv<T, 1, true, false> : gemv::gemv<T, 1, false, false>);
    host::run({unsigned(plan.blocks), 1, 1}, {unsigned(32 * plan.slices), unsigned(plan.teams), 1}, plan.shared_bytes,
              [&] { kernel(problem); });
  }

  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
  double worst = 0;
  for (int token = 0; token < tokens; ++token) {
    for (int row = 0; row < rows; ++row) {
      double sum = 0, magnitude = 0;
      for (int i = 0; i < k; ++i) {
        double const product = double{float(x[token * k + i])} * e2m1(weight[(row * k + i) / 2] >> (i % 2 * 4) & 15) *
                               e4m3(linear[row * columns + i / 16]) * global_scale;
        sum += product;
        magnitude += std::abs(product);
      }
      if (with_bias) sum += float(bias[row]);
      double const allowed = std::abs(sum) * step + magnitude * 1e-5 + 1e-7;
      double const is = std::abs(float(out[token * rows + row]) - sum) / allowed;
      worst = std::isnan(is) ? INFINITY : std::max(worst, is);
    }
  }
  return worst;
}

template <typename T>
int check(char const* type, Case const& c, gemv::Plan const& plan, bool ahead) {
  double const worst = error<T>(c, plan, ahead);
  if (worst <= 1) return 0;
  std::printf(
      "%s: %d tokens, %d x %d, swizzled %d, bias %d; launches of %d tokens, %d slices, %d teams, %d blocks, %d sets, ahead %d: "
      "error %g\n",
      type, c.tokens, c.rows, c.k, c.swizzled, c.bias, plan.tokens, plan.slices, plan.teams, plan.blocks, plan.sets, ahead, worst);
  return 1;
}

}  // namespace

int main() {
  Case const cases[] = {{1, 64, 2048, false, false}, {1, 40, 256, true, true},    {3, 129, 1024, false, true},
                        {8, 33, 512, true, false},   {16, 130, 512, false, true}, {9, 48, 768, true, false},
                        {1, 1, 64, false, false},    {2, 17, 320, true, true},    {16, 5, 448, false, true},
                        {4, 70, 2304, false, false}, {5, 31, 2880, true, true},   {11, 16, 4096, true, false}};
  gb10::Device const h200{132, 232448, 233472, 0}, spark{48, 101376, 102400, 0}, tiny{2, 20000, 20000, 0};
  int runs = 0, wrong = 0;
  for (Case const& c : cases) {
    std::size_t const token_bytes = gemv::x_stride(c.k) * std::size_t{2};
    std::vector<gemv::Plan> plans;
    for (gb10::Device const& device : {h200, spark, tiny}) {
      plans.push_back(gemv::choose(c.tokens, c.rows, c.k, token_bytes, device));
      if (plans.back().blocks == 0) plans.pop_back();
    }
    for (int slices : {1, 2, 3, 5, 8}) {
      for (int teams : {1, 2, 4}) {
        if (slices > gemv::k_tiles(c.k) || slices * teams > gemv::kBlockWarps) continue;
        int const sets = std::min(slices, gb10::divide_up(gemv::row_tiles(c.rows), 2 * teams));
        plans.push_back({c.tokens, slices, teams, 2, sets, gemv::shared_bytes(c.tokens, token_bytes, slices, teams, sets)});
      }
    }
    for (gemv::Plan const& plan : plans) {
      bool const ahead = c.tokens <= 8 && (&plan - plans.data()) % 2;  // half of the plans of each kind
      wrong += check<__nv_bfloat16>("bf16", c, plan, ahead) + check<__half>("f16", c, plan, ahead);
      runs += 2;
    }
  }
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
