// The kernels of kernels/attention_front on the CPU, against float64.
#include "numbers.h"

#include "attention_front/attention_front.cuh"

namespace {

namespace front = gb10::attention_front;

int runs = 0, wrong = 0;

void expect(bool right, char const* what, int head_size) {
  ++runs;
  if (right) return;
  ++wrong;
  std::printf("%s: heads of %d\n", what, head_size);
}

template <typename T>
double rounded(double x) {
  return float(T(float(x)));
}

// The nearest E4M3 number, of two the even one; beyond the largest that.
int nearest_e4m3(double x) {
  int best = 0;
  for (int code = 0; code < 0x7F; ++code) {
    double const now = std::abs(std::abs(x) - e4m3(code)), before = std::abs(std::abs(x) - e4m3(best));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(x) ? 0x80 : 0);
}

struct Case {
  int tokens, heads, kv_heads, rotary;
  bool gated, plus_one, mrope, words;  // words: positions have two
};

template <typename T, int kVector>
struct Problem {
  static constexpr int kSize = 32 * kVector, kPositions = 50, kBlocks = 4, kBlockSize = 3;
  Case c;
  int columns, row;
  std::vector<T> qkv, q_weight, k_weight, cos_sin;
  std::vector<std::int32_t> positions;
  std::vector<std::int64_t> slots;

  explicit Problem(Case const& given) : c(given) {
    columns = (c.heads * (c.gated ? 2 : 1) + 2 * c.kv_heads) * kSize;
    row = columns + 8;
    qkv = random_numbers<T>(std::size_t(c.tokens) * row);
    q_weight = random_numbers<T>(kSize), k_weight = random_numbers<T>(kSize);
    cos_sin = random_numbers<T>(kPositions * c.rotary);
    for (int i = 0; i < 3 * c.tokens; ++i) {
      positions.push_back(random_bits() % kPositions);
      if (c.words) positions.push_back(0);
    }
    // No order; -1 is padding, and one beyond the last does not exist. The last token has none.
    std::vector<std::int64_t> const some{5, -1, 11, kBlocks * kBlockSize, 0, 7};
    slots.assign(some.begin(), some.begin() + c.tokens - 1);
  }

  front::Arguments arguments() {
    front::Arguments p{};
    p.qkv = qkv.data(), p.q_weight = q_weight.data(), p.k_weight = k_weight.data(), p.cos_sin = cos_sin.data();
    p.positions = positions.data();
    p.qkv_row = row, p.position_token = c.words ? 2 : 1, p.position_row = c.mrope ? c.tokens * p.position_token : 0;
    p.height_section = c.mrope ? c.rotary / 6 : 0, p.width_section = c.mrope ? c.rotary / 8 : 0;
    p.tokens = c.tokens, p.heads = c.heads, p.kv_heads = c.kv_heads, p.head_size = kSize, p.rotary = c.rotary;
    p.position_count = kPositions, p.epsilon = 1e-6f, p.norm_plus_one = c.plus_one, p.gated = c.gated;
    p.slots = slots.data(), p.slot_count = int(slots.size()), p.blocks = kBlocks, p.block_size = kBlockSize;
    // As vLLM's: [blocks, kv_heads, block size, 2 * head size], the upper half of the last for v.
    p.key_block = p.value_block = c.kv_heads * kBlockSize * 2 * kSize, p.key_head = p.value_head = kBlockSize * 2 * kSize;
    p.key_token = p.value_token = 2 * kSize;
    return p;
  }

  void run(front::Arguments const& p) {
    unsigned const blocks = (c.heads + 2 * c.kv_heads + front::kWarps - 1) / front::kWarps;
    host::run({unsigned(c.tokens), blocks, 1}, {32 * front::kWarps, 1, 1}, 0, [&] { front::front<T, kVector>(p); });
  }

  T const* unit(int token, int number) const { return qkv.data() + std::size_t(token) * row + number * kSize; }
  int position(int token, int axis) const { return positions[(axis * c.tokens + token) * (c.words ? 2 : 1)]; }
  int axis(int i) const {
    if (!c.mrope) return 0;
    if (i % 3 == 1 && i < 3 * (c.rotary / 6)) return 1;
    return i % 3 == 2 && i < 3 * (c.rotary / 8) ? 2 : 0;
  }

  // A head after norm and rotation, before the last rounding; `size`: what a step of each number is one of.
  void expect_head(int token, T const* x, std::vector<T> const& weight, std::vector<double>& y, std::vector<double>& size) const {
    std::vector<double> n(kSize);
    double squares = 0;
    for (int i = 0; i < kSize; ++i) squares += double{float(x[i])} * float(x[i]);
    for (int i = 0; i < kSize; ++i) {
      double const scaled = float(x[i]) / std::sqrt(squares / kSize + 1e-6);
      n[i] = rounded<T>(c.plus_one ? scaled * (1.0 + float(weight[i])) : rounded<T>(scaled) * float(weight[i]));
    }
    y = n;
    size = n;
    int const half = c.rotary / 2;
    for (int i = 0; i < half; ++i) {
      T const* const table = cos_sin.data() + position(token, axis(i)) * c.rotary;
      double const cosine = float(table[i]), sine = float(table[half + i]);
      y[i] = n[i] * cosine - n[i + half] * sine, y[i + half] = n[i + half] * cosine + n[i] * sine;
      size[i] = std::abs(n[i] * cosine) + std::abs(n[i + half] * sine);
      size[i + half] = std::abs(n[i + half] * cosine) + std::abs(n[i] * sine);
    }
  }

  void check() {
    double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
    std::size_t const tokens = c.tokens, cache_size = std::size_t(kBlocks) * c.kv_heads * kBlockSize * 2 * kSize;
    std::vector<T> query(tokens * c.heads * kSize), key(tokens * c.kv_heads * kSize), cache(cache_size);
    std::memset(static_cast<void*>(query.data()), 0xFF, query.size() * sizeof(T));
    std::memset(static_cast<void*>(key.data()), 0xFF, key.size() * sizeof(T));
    std::memset(static_cast<void*>(cache.data()), 0xFF, cache.size() * sizeof(T));
    auto p = arguments();
    p.query = query.data(), p.key_out = key.data(), p.key_cache = cache.data(), p.value_cache = cache.data() + kSize;
    run(p);
    bool right = true;
    std::size_t differ = 0, all = 0;
    std::vector<double> y, size;
    for (int token = 0; token < c.tokens; ++token) {
      for (int head = 0; head < c.heads + c.kv_heads; ++head) {
        bool const is_query = head < c.heads;
        int const number = is_query ? head * (c.gated ? 2 : 1) : head + c.heads * (c.gated ? 1 : 0);
        expect_head(token, unit(token, number), is_query ? q_weight : k_weight, y, size);
        T const* const is =
            is_query ? query.data() + (token * c.heads + head) * kSize : key.data() + (token * c.kv_heads + head - c.heads) * kSize;
        for (int i = 0; i < kSize; ++i) {
          // A norm that FP32 rounds the other way is a step of a product; then half a step more.
          right = right && std::abs(float(is[i]) - y[i]) <= 3.1 * step * std::abs(size[i]) + 1e-6;
          differ += float(is[i]) != rounded<T>(y[i]);
          ++all;
        }
      }
    }
    expect(right && differ <= all / 50, "query and key", kSize);

    // The cache: k and v of tokens with a slot, all else as it was.
    std::vector<T> wanted(cache_size);
    std::memset(static_cast<void*>(wanted.data()), 0xFF, wanted.size() * sizeof(T));
    auto const for_each_slot = [&](auto&& body) {
      for (int token = 0; token < int(slots.size()); ++token) {
        if (slots[token] < 0 || slots[token] >= kBlocks * kBlockSize) continue;
        std::size_t const block = slots[token] / kBlockSize, within = slots[token] % kBlockSize;
        for (int head = 0; head < c.kv_heads; ++head) {
          std::size_t const place = ((block * c.kv_heads + head) * kBlockSize + within) * 2 * kSize;
          body(place, key.data() + (token * c.kv_heads + head) * kSize,
               unit(token, c.heads * (c.gated ? 2 : 1) + c.kv_heads + head));
        }
      }
    };
    for_each_slot([&](std::size_t place, T const* k, T const* v) {
      std::copy_n(k, kSize, wanted.begin() + place);
      std::copy_n(v, kSize, wanted.begin() + place + kSize);
    });
    expect(std::memcmp(cache.data(), wanted.data(), cache_size * sizeof(T)) == 0, "cache", kSize);

    // The same as E4M3, of what was rounded to T.
    std::vector<std::uint8_t> bytes(cache_size, 0xFF), wanted_bytes(cache_size, 0xFF), query_bytes(query.size(), 0xFF);
    float const q_scale = 0.3f, k_scale = 0.007f, v_scale = 1.7f;
    p.query = query_bytes.data(), p.key_out = nullptr, p.key_cache = bytes.data(), p.value_cache = bytes.data() + kSize;
    p.q_scale = &q_scale, p.k_scale = &k_scale, p.v_scale = &v_scale;
    run(p);
    for_each_slot([&](std::size_t place, T const* k, T const* v) {
      for (int i = 0; i < kSize; ++i) {
        wanted_bytes[place + i] = nearest_e4m3(float(k[i]) / k_scale);
        wanted_bytes[place + kSize + i] = nearest_e4m3(float(v[i]) / v_scale);
      }
    });
    expect(bytes == wanted_bytes, "cache in 8 bits", kSize);
    bool same = true;
    for (std::size_t i = 0; i < query.size(); ++i)
      same = same && query_bytes[i] == nearest_e4m3(float(query[i]) * (1.0f / q_scale));
    expect(same, "query in 8 bits", kSize);

    // A position that does not exist is the nearest; no cache is no cache.
    auto const before = positions;
    for (auto& position : positions) position = c.words && &position - positions.data() & 1 ? 0 : kPositions + 3;
    std::vector<T> beyond(query.size()), last(query.size());
    p = arguments();
    p.query = beyond.data();
    run(p);
    for (auto& position : positions) position = position ? kPositions - 1 : 0;
    p.query = last.data();
    run(p);
    expect(std::memcmp(beyond.data(), last.data(), last.size() * sizeof(T)) == 0, "positions beyond the last", kSize);
    positions = before;
  }
};

template <typename T>
void check_gate(int tokens, int heads, int head_size) {
  int const columns = heads * head_size, row = 2 * columns + 8;
  auto out = random_numbers<T>(tokens * columns);
  auto const before = out, gates = random_numbers<T>(tokens * row);
  front::GateArguments p{};
  p.out = out.data(), p.gates = gates.data() + head_size, p.row = row, p.head = 2 * head_size;
  p.tokens = tokens, p.heads = heads, p.head_size = head_size;
  unsigned const blocks = (columns / 8 + front::kGateThreads - 1) / front::kGateThreads;
  host::run({unsigned(tokens), blocks, 1}, {front::kGateThreads, 1, 1}, 0, [&] { front::gate<T>(p); });
  double const step = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;
  bool right = true;
  for (int token = 0; token < tokens; ++token) {
    for (int i = 0; i < columns; ++i) {
      double const g = float(gates[token * row + head_size + i / head_size * 2 * head_size + i % head_size]);
      double const wanted = float(before[token * columns + i]) / (1 + std::exp(-g));
      right = right && std::abs(float(out[token * columns + i]) - wanted) <= 1.02 * step * std::abs(wanted) + 1e-7;
    }
  }
  expect(right, "gate", head_size);
}

template <typename T>
void check_all() {
  Problem<T, 8>({5, 4, 2, 64, true, true, false, true}).check();
  Problem<T, 8>({2, 3, 1, 64, true, true, true, true}).check();
  Problem<T, 4>({4, 8, 1, 128, false, false, false, false}).check();
  Problem<T, 4>({6, 2, 2, 48, true, true, true, false}).check();
  Problem<T, 2>({3, 4, 2, 16, true, true, false, true}).check();
  Problem<T, 2>({1, 1, 1, 64, false, true, false, true}).check();
  check_gate<T>(3, 4, 256);
  check_gate<T>(1, 3, 64);
}

}  // namespace

int main() {
  check_all<__nv_bfloat16>();
  check_all<__half>();
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
