// The kernels of kernels/sparse24/moe.cuh on the CPU against float64, from a file of weights that gb10.sparse24 packed: for each
// layer the numbers experts, hidden, intermediate (int32), then for w13 and for w2 values, positions, scales (the packed bytes)
// and the kept weight [experts, rows, k] without global scales (float64).
#include "numbers.h"

#include "sparse24/moe.cuh"

namespace {

namespace sparse = gb10::sparse24;
using gb10::moe::Activation;

struct Stack {
  std::vector<std::uint8_t> values, positions, scales;
  std::vector<double> weight;
  int rows, k;
  sparse::Packed packed() const { return {values.data(), positions.data(), scales.data()}; }
  double dot(int matrix, int row, double const* x) const {
    double sum = 0;
    double const* const w = weight.data() + (std::size_t(matrix) * rows + row) * k;
    for (int i = 0; i < k; ++i) sum += w[i] * x[i];
    return sum;
  }
};

template <typename T>
std::vector<T> read(std::FILE* file, std::size_t count) {
  std::vector<T> data(count);
  if (std::fread(data.data(), sizeof(T), count, file) != count) {
    std::puts("the file ends early");
    std::exit(2);
  }
  return data;
}

Stack read_stack(std::FILE* file, int count, int rows, int k) {
  std::size_t const tiles = std::size_t(count) * ((rows + 15) / 16) * ((k + 255) / 256);
  Stack s;
  s.values = read<std::uint8_t>(file, tiles * sparse::kTileValueBytes);
  s.positions = read<std::uint8_t>(file, tiles * sparse::kTilePositionBytes);
  s.scales = read<std::uint8_t>(file, tiles * sparse::kTileScaleBytes);
  s.weight = read<double>(file, std::size_t(count) * rows * k);
  s.rows = rows;
  s.k = k;
  return s;
}

int runs = 0, wrong = 0;

struct Call {
  int tokens, topk;
  bool up_first, on_input, wide, mapped, two_globals;
  Activation activation;
};

double activation(Activation kind, double gate, double up) {
  if (kind == Activation::kSwish) return gate / (1 + std::exp(-gate)) * up;
  if (kind == Activation::kGelu) return 0.5 * gate * (1 + std::erf(gate / std::sqrt(2.0))) * up;
  return 0.5 * gate * (1 + std::tanh(0.79788456080286536 * (gate + 0.044715 * gate * gate * gate))) * up;
}

template <typename T, int kGroups, int kSlices>
void check(Stack const& w13, Stack const& w2, int experts, Call const& call) {
  int const hidden = w13.k, intermediate = w2.k, pairs = call.tokens * call.topk, named = call.mapped ? 2 * experts : experts;
  std::vector<std::int32_t> map(named, -1);
  for (int i = 0; i < experts; ++i) map[(2 * i + 1) % named] = i;
  std::vector<std::int32_t> narrow(pairs);
  std::vector<std::int64_t> wide(pairs);
  for (int i = 0; i < pairs; ++i) {
    int const id = static_cast<int>(random_bits() % (named + 2)) - 1;  // -1 and one past the end, too
    narrow[i] = id;
    wide[i] = i == 1 ? (std::int64_t{1} << 32) + 1 : id;
  }
  if (call.topk > 3) narrow[3] = narrow[2] = wide[3] = wide[2] = 1;  // one token has an expert twice
  std::vector<float> weights(pairs), globals(2 * experts), w2_globals(experts);
  for (auto& v : weights) v = (random_bits() % 1000 + 1) / 1000.0f;
  for (auto& v : globals) v = (random_bits() % 100 + 50) * 1e-5f;
  for (auto& v : w2_globals) v = (random_bits() % 100 + 50) * 1e-4f;
  auto const x = random_numbers<T>(std::size_t(call.tokens) * hidden);

  std::vector<double> want(std::size_t(call.tokens) * hidden), magnitude(want.size());
  for (int pair = 0; pair < pairs; ++pair) {
    std::int64_t const id = call.wide ? wide[pair] : narrow[pair];
    if (id < 0 || id >= named) continue;
    int const expert = call.mapped ? map[id] : static_cast<int>(id);
    if (expert < 0) continue;
    int const token = pair / call.topk;
    std::vector<double> own(hidden), act(intermediate);
    for (int i = 0; i < hidden; ++i) own[i] = float(x[std::size_t(token) * hidden + i]);
    for (int i = 0; i < intermediate; ++i) {
      double const factor = call.on_input ? weights[pair] : 1.0;
      float const* const scale = &globals[expert * (call.two_globals ? 2 : 1)];
      double const gate = factor * scale[0] * w13.dot(expert, i + (call.up_first ? intermediate : 0), own.data());
      double const up = factor * scale[call.two_globals] * w13.dot(expert, i + (call.up_first ? 0 : intermediate), own.data());
      act[i] = activation(call.activation, gate, up);
    }
    for (int i = 0; i < hidden; ++i) {
      double const part = w2.dot(expert, i, act.data()) * w2_globals[expert] * (call.on_input ? 1.0 : weights[pair]);
      want[std::size_t(token) * hidden + i] += part;
      magnitude[std::size_t(token) * hidden + i] += std::abs(part);
    }
  }

  std::vector<float> act(std::size_t(pairs) * intermediate);
  std::vector<T> out(want.size());
  std::memset(act.data(), 0xFF, act.size() * sizeof(float));
  std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));
  sparse::MoeArguments p{};
  p.x = x.data();
  p.w13 = w13.packed();
  p.w13_globals = globals.data();
  p.w2 = w2.packed();
  p.w2_globals = w2_globals.data();
  p.ids = call.wide ? static_cast<void const*>(wide.data()) : narrow.data();
  p.weights = weights.data();
  p.expert_map = call.mapped ? map.data() : nullptr;
  p.act = act.data();
  p.out = out.data();
  p.tokens = call.tokens;
  p.topk = call.topk;
  p.experts = experts;
  p.map_size = named;
  p.hidden = hidden;
  p.intermediate = intermediate;
  p.global_columns = call.two_globals ? 2 : 1;
  p.activation = call.activation;
  p.up_first = call.up_first;
  p.wide_ids = call.wide;
  p.router_weight_on_input = call.on_input;
  p.limit = INFINITY;
  p.alpha = 1.0f;
  host::run({3, 1, 1}, {sparse::kMoeThreads, 1, 1}, sparse::gate_up_bytes<kGroups, kSlices>(call.tokens, call.topk, hidden),
            [&] { sparse::gate_up<T, kGroups, kSlices>(p); });
  host::run({2, 1, 1}, {sparse::kMoeThreads, 1, 1}, sparse::down_bytes<kGroups>(call.tokens, call.topk, intermediate),
            [&] { sparse::down<T, kGroups>(p); });
  ++runs;
  // By rows of the output: half a step of T, and what act loses in f16 (a number at a time, so the sum's share is less).
  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
  for (int token = 0; token < call.tokens; ++token) {
    double size = 0;
    for (int i = 0; i < hidden; ++i) size = std::max(size, magnitude[std::size_t(token) * hidden + i]);
    for (int i = 0; i < hidden; ++i) {
      double const is = float(out[std::size_t(token) * hidden + i]), be = want[std::size_t(token) * hidden + i];
      if (std::abs(is - be) <= std::abs(be) * step + size * 2e-3 + 1e-7) continue;
      ++wrong;
      std::printf("token %d channel %d is %g, not %g: %d tokens, top %d, %d x %d, %d slices, f16 %d\n", token, i, is, be, call.tokens,
                  call.topk, hidden, intermediate, kSlices, std::is_same_v<T, __half>);
      return;
    }
  }
}

template <typename T>
void check_all(Stack const& w13, Stack const& w2, int experts) {
  check<T, 1, 8>(w13, w2, experts, {1, 4, false, false, false, false, true, Activation::kSwish});
  check<T, 1, 8>(w13, w2, experts, {5, 3, true, true, true, true, false, Activation::kGelu});
  check<T, 1, 2>(w13, w2, experts, {8, 5, false, false, true, false, true, Activation::kGeluTanh});
  check<T, 2, 2>(w13, w2, experts, {16, 32, true, false, false, true, true, Activation::kSwish});
  check<T, 2, 2>(w13, w2, experts, {9, 2, false, true, false, false, false, Activation::kSwish});
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* const file = std::fopen(arguments[1], "rb");
  if (!file) return 2;
  for (int header[3]; std::fread(header, sizeof header, 1, file) == 1;) {
    auto const [experts, hidden, intermediate] = header;
    Stack const w13 = read_stack(file, experts, 2 * intermediate, hidden);
    Stack const w2 = read_stack(file, experts, hidden, intermediate);
    check_all<__nv_bfloat16>(w13, w2, experts);
    check_all<__half>(w13, w2, experts);
  }
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
