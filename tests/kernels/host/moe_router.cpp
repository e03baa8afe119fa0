// The kernel of kernels/moe_router on the CPU against float64. Small integers have exact sums, so ids must be equal there, ties too.
#include "numbers.h"

#include "moe_router/moe_router.cuh"

namespace {

namespace router = gb10::moe_router;

struct Case {
  int tokens, topk, columns, experts;
  bool shared, norm, residual, plus_one, renormalise, integers;
  int tile_rows, equal = 0;  // experts 0 .. equal - 1 have the same row
};

template <typename T>
double rounded(double v) {
  return float(T(float(v)));
}

// What is wrong; nullptr: nothing.
template <typename T, int kWarps, int kVectors>
char const* fault(Case const& c, std::vector<std::uint32_t>& keys) {
  int const rows = c.experts + c.shared, values = c.tokens * c.columns;
  auto const number = [&] { return c.integers ? T(float(int(random_bits() % 5) - 2)) : random_numbers<T>(1)[0]; };
  std::vector<T> x(values), residual(values), weight(c.columns), gate(rows * c.columns), normed(values), residual_out(values);
  for (auto* each : {&x, &residual, &weight, &gate})
    for (auto& v : *each) v = number();
  for (auto& v : gate) v = T(float(v) * (c.integers ? 0.0625f : 0.03125f));
  for (int e = 1; e < c.equal; ++e) std::copy_n(gate.begin(), c.columns, gate.begin() + e * c.columns);
  std::memset(static_cast<void*>(normed.data()), 0xFF, 2 * values);
  std::memset(static_cast<void*>(residual_out.data()), 0xFF, 2 * values);
  std::vector<std::int32_t> ids(c.tokens * c.topk, -1);
  std::vector<float> weights(c.tokens * c.topk, NAN), multiplier(c.tokens, NAN);

  router::Arguments a{};
  a.x = x.data();
  a.residual = c.residual ? residual.data() : nullptr;
  a.norm_weight = c.norm ? weight.data() : nullptr;
  a.gate = gate.data();
  a.shared_gate = c.shared ? gate.data() + std::size_t(c.experts) * c.columns : nullptr;
  a.keys = keys.data();
  a.ids = ids.data();
  a.weights = weights.data();
  a.shared_multiplier = c.shared ? multiplier.data() : nullptr;
  a.normed = c.norm ? normed.data() : nullptr;
  a.residual_out = c.norm ? residual_out.data() : nullptr;
  a.epsilon = 1e-6f;
  a.tokens = c.tokens, a.columns = c.columns, a.experts = c.experts, a.topk = c.topk;
  a.norm_plus_one = c.plus_one, a.renormalise = c.renormalise;
  router::Plan plan{};
  plan.tile_rows = c.tile_rows;
  plan.tiles = (rows + c.tile_rows - 1) / c.tile_rows;
  while (2 * c.tokens << plan.warps_shift <= kWarps) ++plan.warps_shift;
  plan.vectors_each = (kWarps * kVectors + plan.tiles - 1) / plan.tiles;
  plan.inverse_columns = 1.0f / c.columns;
  if ((32 << plan.warps_shift) * kVectors * 8 < c.columns) return "the case has too few vectors";
  unsigned const blocks = plan.tiles + c.tokens;
  int const shared_bytes = (router::shared_bytes(kWarps, c.tokens, c.columns) + 15) / 16 * 16;
  host::run({blocks, 1, 1}, {32 * kWarps, 1, 1}, shared_bytes, [&] { router::route<T, kWarps, kVectors>(a, plan); });

  for (std::uint32_t key : keys)
    if (key) return "the workspace is not left as zeros";
  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;  // half a unit in the last place, at most
  for (int token = 0; token < c.tokens; ++token) {
    auto const at = [&](std::vector<T> const& of, int k) { return double{float(of[token * c.columns + k])}; };
    std::vector<double> own(c.columns);
    double squares = 0;
    for (int k = 0; k < c.columns; ++k) {
      own[k] = at(x, k) + (c.residual ? at(residual, k) : 0);
      squares += own[k] * own[k];
      if (c.norm && at(residual_out, k) != rounded<T>(own[k])) return "residual_out";
    }
    for (int k = 0; k < c.columns && c.norm; ++k) {
      double const wanted = own[k] / std::sqrt(squares / c.columns + 1e-6) * (float(weight[k]) + c.plus_one);
      own[k] = at(normed, k);
      if (!(std::abs(own[k] - wanted) <= std::abs(wanted) * (step + 1e-6) + 1e-7)) return "normed";
    }
    std::vector<double> logits(rows);
    for (int e = 0; e < rows; ++e)
      for (int k = 0; k < c.columns; ++k) logits[e] += own[k] * float(gate[std::size_t(e) * c.columns + k]);
    double const sigmoid = c.shared ? 1 / (1 + std::exp(-logits[c.experts])) : 0;
    if (c.shared && !(std::abs(multiplier[token] - sigmoid) <= 1e-5)) return "shared_multiplier";
    std::vector<int> order(c.experts);
    for (int e = 0; e < c.experts; ++e) order[e] = e, logits[e] = rounded<T>(logits[e]);
    std::stable_sort(order.begin(), order.end(), [&](int e, int f) { return logits[e] > logits[f]; });
    double all = 0, chosen = 0;
    for (int e = 0; e < c.experts; ++e) all += std::exp(logits[e] - logits[order[0]]);
    for (int slot = 0; slot < c.topk; ++slot) chosen += std::exp(logits[order[slot]] - logits[order[0]]);
    for (int slot = 0; slot < c.topk; ++slot) {
      int const id = ids[token * c.topk + slot], wanted = order[slot];
      if (id < 0 || id >= c.experts) return "an id is out of range";
      for (int before = 0; before < slot; ++before)
        if (ids[token * c.topk + before] == id) return "an id is there twice";
      // Without exact sums a logit may be rounded to the other side.
      double const far = c.integers ? 0 : 4 * step * (std::abs(logits[wanted]) + 1e-3);
      if (c.integers ? id != wanted : std::abs(logits[id] - logits[wanted]) > far) return "ids";
      double const share = std::exp(logits[wanted] - logits[order[0]]) / (c.renormalise ? chosen : all);
      if (!(std::abs(weights[token * c.topk + slot] - share) <= share * (c.integers ? 3e-6 : 4 * far + 1e-5))) return "weights";
    }
  }
  return nullptr;
}

int runs = 0, wrong = 0;

template <typename T, int kWarps, int kVectors>
void check(Case const& c) {
  std::vector<std::uint32_t> keys(c.tokens * router::key_stride(c.experts));
  char const* const what = fault<T, kWarps, kVectors>(c, keys);
  ++runs;
  if (!what) return;
  ++wrong;
  std::printf("%s: %d tokens, top %d of %d, %d columns, shared %d, norm %d, residual %d, integers %d, rows %d, f16 %d\n", what,
              c.tokens, c.topk, c.experts, c.columns, c.shared, c.norm, c.residual, c.integers, c.tile_rows,
              std::is_same_v<T, __half>);
}

// Keys are in the order of their numbers, then of their experts; a number comes back as it was, and -0 as 0.
template <typename T>
void check_keys() {
  float const rising[] = {-INFINITY, -3.5f, -0.25f, -0x1p-20f, 0, 0x1p-20f, 0.25f, 3.5f, INFINITY};
  bool right = router::key_of<T>(-0.0f, 2) > router::key_of<T>(0.0f, 3) && router::key_of<T>(-0.0f, 3) < router::key_of<T>(0.0f, 2);
  for (float v : rising) {
    right = right && router::key_of<T>(v, 7) > router::key_of<T>(v, 1023) && router::expert_of(router::key_of<T>(v, 1023)) == 1023;
    right = right && router::logit_of<T>(router::key_of<T>(v, 5)) == v && router::key_of<T>(v, 1023) != 0;
  }
  for (int i = 1; i < 9; ++i) right = right && router::key_of<T>(rising[i], 1023) > router::key_of<T>(rising[i - 1], 0);
  ++runs;
  if (right) return;
  ++wrong;
  std::puts("keys");
}

template <typename T>
void check_all() {
  check_keys<T>();
  // tokens, topk, columns, experts; shared, norm, residual, plus_one, renormalise, integers; rows
  check<T, 8, 1>({1, 10, 2048, 512, true, true, true, true, true, false, 8});
  check<T, 8, 1>({1, 10, 2048, 512, true, false, false, false, true, true, 4});
  check<T, 8, 2>({2, 8, 2048, 128, false, true, true, false, true, false, 8});
  check<T, 8, 1>({1, 4, 256, 16, true, true, true, true, true, false, 4});
  check<T, 8, 1>({3, 4, 256, 16, true, false, false, false, true, true, 4});
  check<T, 8, 2>({8, 8, 512, 250, true, false, false, false, false, true, 8});
  check<T, 16, 8>({16, 4, 256, 16, true, true, true, true, false, false, 8});
  check<T, 16, 8>({13, 32, 512, 1024, true, false, false, false, true, true, 8, 40});
  check<T, 8, 4>({4, 1, 1280, 7, false, true, false, true, false, false, 4});
  check<T, 8, 8>({5, 3, 1792, 130, true, true, true, true, true, false, 8});
  check<T, 16, 8>({9, 32, 2048, 33, true, true, true, true, false, false, 8, 33});
  check<T, 16, 8>({3, 2, 2304, 10, true, true, true, true, true, false, 4});
  check<T, 8, 4>({1, 1, 8192, 9, true, false, false, false, false, true, 8});
  check<T, 8, 1>({1, 5, 256, 5, false, false, false, false, true, true, 8, 5});
}

}  // namespace

int main() {
  check_all<__nv_bfloat16>();
  check_all<__half>();
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
