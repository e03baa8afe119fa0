// The kernel of kernels/gdn_decode on the CPU: against float64, and its bits for every split and number of tokens.
#include "numbers.h"

#include "gdn_decode/gdn_decode.cuh"

namespace {

namespace gdn = gb10::gdn_decode;

struct Case {
  int key_heads, ratio, value_size, steps;
  std::vector<int> accepted;  // of each sequence; -1: none
  bool interleaved, bias, float_weights, pairs;
  std::vector<int> counts = {};  // tokens of each sequence, where they differ; after them come rows of padding
};
constexpr int kPadding = 3;

double rounded(double x, __nv_bfloat16) { return float(__nv_bfloat16(float(x))); }
double rounded(double x, __half) { return float(__half(float(x))); }
double rounded(double x, float) { return float(x); }

template <typename T, typename S, int kKeySize>
struct Problem {
  static constexpr int kSlots = 40, kMargin = 24;
  Case c;
  int value_heads, sequences, keys, channels, columns, mixed_row, rows, conv_taps, state_row;
  std::vector<T> mixed, conv_weight, conv_bias, conv;
  std::vector<S> state;
  std::vector<float> log_decay, float_step_bias, float_norm;
  std::vector<T> step_bias, norm;
  std::vector<int> slots, starts;

  explicit Problem(Case const& given) : c(given) {
    value_heads = c.key_heads * c.ratio;
    sequences = static_cast<int>(c.accepted.size());
    keys = c.key_heads * kKeySize;
    channels = 2 * keys + value_heads * c.value_size;
    columns = 2 * keys + 2 * value_heads * c.value_size + 2 * value_heads;
    mixed_row = columns + 6;
    conv_taps = 2 + c.steps + 1;
    state_row = value_heads * c.value_size * kKeySize + kMargin;
    for (int n = 0; n <= sequences; ++n) starts.push_back(n == 0 ? 0 : starts.back() + count(n - 1));
    rows = starts.back() + (ragged() ? kPadding : 0);
    mixed = random_numbers<T>(std::size_t(rows) * mixed_row);
    conv_weight = random_numbers<T>(channels * 4);
    conv_bias = random_numbers<T>(channels);
    conv = random_numbers<T>(std::size_t(kSlots) * channels * conv_taps);
    state = random_numbers<S>(std::size_t(kSlots) * state_row);
    for (int h = 0; h < value_heads; ++h) {
      log_decay.push_back(float(uniform(-2, 1)));
      step_bias.push_back(T(float(uniform(-3, 2))));
      float_step_bias.push_back(float(step_bias.back()));
    }
    for (int i = 0; i < c.value_size; ++i) {
      norm.push_back(T(float(uniform(0.5, 1.5))));
      float_norm.push_back(float(norm.back()));
    }
    // Slots in no order, all different; one sequence of several has none.
    std::vector<int> order(kSlots - 1);
    for (int i = 0; i < kSlots - 1; ++i) order[i] = i + 1;
    std::shuffle(order.begin(), order.end(), random_bits);
    for (int i = 0; i < sequences * c.steps; ++i) slots.push_back(order[i]);
    if (sequences > 2) slots[c.steps] = 0;
    if (sequences > 3) slots[2 * c.steps + std::max(c.accepted[2] - 1, 0)] = kSlots;
    if (sequences > 4 && c.steps > 1) slots[3 * c.steps + c.steps - 1] = -1;
  }

  bool ragged() const { return !c.counts.empty(); }
  int count(int n) const { return ragged() ? c.counts[n] : c.steps; }
  int conv_channel() const { return c.pairs ? 1 : conv_taps; }
  int conv_tap() const { return c.pairs ? channels : 1; }

  // All tokens, or token `only` of each sequence that has so many, in blocks of so many rows.
  template <int kRows, int kSteps>
  std::vector<T> run(int only, std::vector<int> const& use_slots, std::vector<int> const& accepted) {
    int const steps = only < 0 ? c.steps : 1, all = only < 0 ? rows : sequences;
    std::vector<T> out(std::size_t(all) * value_heads * c.value_size), some;
    std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));
    for (int n = 0; only >= 0 && n < sequences; ++n) {
      auto const begin = mixed.begin() + std::min(starts[n] + only, rows - 1) * mixed_row;
      some.insert(some.end(), begin, begin + mixed_row);
    }
    gdn::Arguments p{};
    p.mixed = only < 0 ? mixed.data() : some.data(), p.conv_state = conv.data(), p.conv_weight = conv_weight.data();
    p.conv_bias = c.bias ? conv_bias.data() : nullptr;
    p.log_decay = log_decay.data();
    p.step_bias = c.float_weights ? static_cast<void const*>(float_step_bias.data()) : step_bias.data();
    p.norm_weight = c.float_weights ? static_cast<void const*>(float_norm.data()) : norm.data();
    p.state = state.data(), p.slots = use_slots.data(), p.out = out.data();
    p.accepted = accepted[0] < 0 ? nullptr : accepted.data();
    p.starts = ragged() && only < 0 ? starts.data() : nullptr;
    p.mixed_row = mixed_row, p.conv_slot = channels * conv_taps, p.conv_channel = conv_channel(), p.conv_tap = conv_tap();
    p.state_slot = state_row, p.slots_row = steps, p.slots_step = 1, p.accepted_row = 1;
    p.epsilon = 1e-6f, p.query_scale = 1.0f / std::sqrt(float(kKeySize));
    p.rows = all, p.sequences = sequences, p.steps = steps, p.slot_count = kSlots, p.key_heads = c.key_heads,
    p.value_heads = value_heads;
    p.key_size = kKeySize, p.value_size = c.value_size, p.interleaved = c.interleaved;
    p.float_step_bias = p.float_norm_weight = c.float_weights, p.conv_pairs = c.pairs;
    gdn::prepare(p, kRows);
    gdn::Layout const at(steps, kKeySize, c.value_size, kRows);
    unsigned const cluster = c.ratio * p.split;
    host::run(
        {cluster, unsigned(c.key_heads), unsigned(sequences)}, {gdn::kLanes * kRows, 1, 1}, sizeof(float) * at.all,
        [&] { gdn::decode<T, S, kKeySize, kRows, kSteps>(p); }, cluster);
    return out;
  }

  int column(int kind, int head, int i) const {  // kind: q, k, v, z, b, a
    int const r = c.ratio, g = kind < 2 ? head : head / r, j = head % r;
    int const group = 2 * kKeySize + 2 * r * c.value_size, gates = c.key_heads * group;
    if (c.interleaved) {
      if (kind < 2) return g * group + kind * kKeySize + i;
      if (kind < 4) return g * group + 2 * kKeySize + ((kind - 2) * r + j) * c.value_size + i;
      return gates + g * 2 * r + (kind - 4) * r + j;
    }
    if (kind < 2) return kind * keys + head * kKeySize + i;
    if (kind < 4) return 2 * keys + ((kind - 2) * value_heads + head) * c.value_size + i;
    return gates + (kind - 4) * value_heads + head;
  }

  // In float64, rounded where the kernel rounds.
  void expect(std::vector<double>& out, std::vector<double>& states, std::vector<T>& convs) const {
    out.assign(std::size_t(rows) * value_heads * c.value_size, 0.0);
    states.assign(state.begin(), state.end());
    convs = conv;
    std::size_t const page = std::size_t(channels) * conv_taps;
    for (int n = 0; n < sequences; ++n) {
      int const* const mine = slots.data() + n * c.steps;
      int const from = c.accepted[n] < 0 ? 0 : std::clamp(c.accepted[n] - 1, 0, c.steps - 1);
      auto const exists = [](int slot) { return slot > 0 && slot < kSlots; };
      if (count(n) == 0 || !exists(mine[0]) || !exists(mine[from])) continue;
      auto const input = [&](int step, int channel) -> T {
        if (step < 0) return conv[mine[0] * page + channel * conv_channel() + (from + 3 + step) * conv_tap()];
        int const kind = channel < keys ? 0 : channel < 2 * keys ? 1 : 2, size = kind == 2 ? c.value_size : kKeySize;
        int const within = channel - kind * keys;
        return mixed[(starts[n] + step) * mixed_row + column(kind, within / size, within % size)];
      };
      auto const y = [&](int step, int channel) {
        double sum = c.bias ? float(conv_bias[channel]) : 0.0;
        for (int tap = 0; tap < 4; ++tap)
          sum += double{float(conv_weight[channel * 4 + tap])} * float(input(step - 3 + tap, channel));
        return rounded(sum / (1 + std::exp(-sum)), T{});
      };
      for (int channel = 0; channel < channels; ++channel) {
        for (int i = 0; i < 2 + count(n); ++i) {
          convs[mine[0] * page + channel * conv_channel() + i * conv_tap()] = input(i - 2, channel);
        }
      }
      for (int h = 0; h < value_heads; ++h) {
        int const g = h / c.ratio;
        std::vector<double> hidden(std::size_t(c.value_size) * kKeySize);
        for (std::size_t i = 0; i < hidden.size(); ++i)
          hidden[i] = float(state[mine[from] * std::size_t(state_row) + h * hidden.size() + i]);
        for (int step = 0; step < count(n); ++step) {
          T const* const x = mixed.data() + (starts[n] + step) * mixed_row;
          double const a = float(x[column(5, h, 0)]) + double{float_step_bias[h]}, b = float(x[column(4, h, 0)]);
          double const decay = std::exp(-std::exp(double{log_decay[h]}) * std::log1p(std::exp(a))),
                       strength = 1 / (1 + std::exp(-b));
          std::vector<double> q(kKeySize), k(kKeySize);
          double q2 = 0, k2 = 0;
          for (int i = 0; i < kKeySize; ++i) {
            q[i] = y(step, g * kKeySize + i), k[i] = y(step, keys + g * kKeySize + i);
            q2 += q[i] * q[i], k2 += k[i] * k[i];
          }
          for (int i = 0; i < kKeySize; ++i) q[i] /= std::sqrt((q2 + 1e-6) * kKeySize), k[i] /= std::sqrt(k2 + 1e-6);
          std::vector<double> o(c.value_size);
          double squares = 0;
          for (int row = 0; row < c.value_size; ++row) {
            double* const values = hidden.data() + std::size_t(row) * kKeySize;
            double known = 0, result = 0;
            for (int i = 0; i < kKeySize; ++i) known += decay * values[i] * k[i];
            double const change = strength * (y(step, 2 * keys + h * c.value_size + row) - known);
            for (int i = 0; i < kKeySize; ++i) {
              values[i] = decay * values[i] + change * k[i];
              result += values[i] * q[i];
              values[i] = rounded(values[i], S{});
            }
            o[row] = rounded(result, T{});
            squares += o[row] * o[row];
          }
          for (int row = 0; row < c.value_size; ++row) {
            double const z = float(x[column(3, h, row)]);
            out[((starts[n] + step) * std::size_t(value_heads) + h) * c.value_size + row] =
                o[row] / std::sqrt(squares / c.value_size + 1e-6) * float_norm[row] * z / (1 + std::exp(-z));
          }
          if (exists(mine[step])) {
            std::copy(hidden.begin(), hidden.end(), states.begin() + mine[step] * std::size_t(state_row) + h * hidden.size());
          }
        }
      }
    }
  }
};

template <typename V, typename W>
double distance(std::vector<V> const& is, std::vector<W> const& wanted) {
  double difference = 0, whole = 0;
  for (std::size_t i = 0; i < is.size(); ++i) {
    double const d = static_cast<double>(is[i]) - static_cast<double>(wanted[i]);
    difference += d * d, whole += static_cast<double>(wanted[i]) * static_cast<double>(wanted[i]);
  }
  return std::sqrt(difference / whole);
}

template <typename V>
bool same(std::vector<V> const& a, std::vector<V> const& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(V)) == 0;
}

int runs = 0, wrong = 0;

void expect(bool right, char const* what, Case const& c) {
  ++runs;
  if (right) return;
  ++wrong;
  std::printf(
      "%s: %d key heads, %d value heads each, %d rows, %d tokens%s, %zu sequences, interleaved %d, bias %d, float %d, pairs %d\n",
      what, c.key_heads, c.ratio, c.value_size, c.steps, c.counts.empty() ? "" : " at most", c.accepted.size(), c.interleaved,
      c.bias, c.float_weights, c.pairs);
}

template <typename T, typename S, int kKeySize, int kSteps>
void check(Case const& c) {
  Problem<T, S, kKeySize> const problem(c);
  std::vector<double> out, states;
  std::vector<T> convs;
  problem.expect(out, states, convs);
  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;

  auto wide = problem;
  auto const first = wide.template run<64, kSteps>(-1, problem.slots, c.accepted);
  bool const finite = std::all_of(first.begin(), first.end(), [](T v) { return std::isfinite(float(v)); });
  expect(finite && distance(first, out) < 0.8 * step, "out", c);
  bool padding = true;
  for (std::size_t i = std::size_t(problem.starts.back()) * problem.value_heads * c.value_size; i < first.size(); ++i) {
    padding = padding && float(first[i]) == 0.0f;
  }
  expect(padding, "padding", c);
  std::vector<double> stored, wanted;
  bool untouched = true;
  for (std::size_t i = 0; i < states.size(); ++i) {
    double const before = float(problem.state[i]), after = float(wide.state[i]);
    if (states[i] == before) untouched = untouched && std::abs(after - before) <= step * std::abs(before);
    else stored.push_back(after), wanted.push_back(states[i]);
  }
  expect(stored.empty() || distance(stored, wanted) < (std::is_same_v<S, float> ? 2e-3 : 0.3 * step), "state", c);
  expect(untouched, "a state that is not its own", c);
  expect(same(wide.conv, convs), "inputs", c);
  if (c.ratio * c.value_size / 32 <= gdn::kMaxCluster) {
    auto narrow = problem;
    auto const second = narrow.template run<32, kSteps>(-1, problem.slots, c.accepted);
    expect(same(first, second) && same(wide.state, narrow.state) && same(wide.conv, narrow.conv), "bits of blocks of 32 rows", c);
  }
  if (c.steps == 1 || c.accepted[0] > 1) return;
  // As many calls for one token, in the first slot of each sequence.
  auto serial = problem;
  std::vector<int> one;
  for (int n = 0; n < problem.sequences; ++n) one.push_back(problem.slots[n * c.steps]);
  std::vector<int> const none(problem.sequences, -1);
  for (int i = 0; i < c.steps; ++i) {
    auto const token = serial.template run<64, 1>(i, one, none);
    std::size_t const size = std::size_t(problem.value_heads) * c.value_size;
    bool equal = true;
    for (int n = 0; n < problem.sequences; ++n) {
      int const slot = problem.slots[n * c.steps + std::max(c.accepted[n] - 1, 0)];
      if (c.accepted[n] > 1 || slot >= problem.kSlots || i >= problem.count(n)) continue;  // started elsewhere, or over
      equal = equal && std::memcmp(token.data() + n * size, first.data() + (problem.starts[n] + i) * size, size * sizeof(T)) == 0;
    }
    expect(equal, "bits of serial calls", c);
  }
}

template <typename T, typename S>
void check_all() {
  check<T, S, 128, 1>({1, 2, 128, 1, {-1}, true, false, false, true});
  check<T, S, 128, 1>({2, 3, 64, 1, {-1, -1, -1, -1}, false, true, true, false});
  check<T, S, 64, 1>({2, 2, 64, 1, {-1, -1, -1}, true, true, false, true});
  check<T, S, 64, 1>({1, 1, 64, 1, {-1}, false, false, true, false});
  check<T, S, 64, gdn::kMaxSteps>({1, 2, 64, 3, {1, 1, 2, 3, 0, 9}, true, false, true, true});
  check<T, S, 128, gdn::kMaxSteps>({1, 1, 64, 5, {1, 4}, false, true, false, true});
  check<T, S, 64, gdn::kMaxSteps>({1, 4, 128, 8, {8}, false, false, false, false});
  // Of unequal length: fewer than was accepted last, one, none, the most; no sequence at a length of its own; one column.
  check<T, S, 64, gdn::kMaxSteps>({1, 2, 64, 4, {1, 1, 4, 1, 2, 1}, true, true, true, true, {3, 2, 2, 1, 4, 0}});
  check<T, S, 128, gdn::kMaxSteps>({1, 2, 128, 8, {1, 8, 3}, false, false, false, true, {8, 0, 5}});
  check<T, S, 64, gdn::kMaxSteps>({2, 1, 64, 3, {1, 3}, false, true, false, false, {2, 2}});
  check<T, S, 64, gdn::kMaxSteps>({1, 1, 64, 1, {1, 1}, true, false, false, true, {1, 0}});
}

}  // namespace

int main() {
  check_all<__nv_bfloat16, __nv_bfloat16>();
  check_all<__nv_bfloat16, float>();
  check_all<__half, __half>();
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
