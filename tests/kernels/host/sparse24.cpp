// The kernel of kernels/sparse24 on the CPU against float64, from a file of weights that gb10.sparse24 packed:
// for each weight the numbers rows, k (int32), values, positions, scales (the packed bytes), and the kept weight [rows, k]
// without the global scale (float64).
#include "numbers.h"

#include "sparse24/sparse24.cuh"

namespace {

namespace gemv = gb10::sparse24;

struct Weight {
  int rows, k;
  std::vector<std::uint8_t> values, positions, scales;
  std::vector<double> weight;
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

int runs = 0, wrong = 0;

template <typename T, int kGroups, int kSlices, int kTeams, bool kTurns>
void check(Weight const& w, int tokens, bool with_bias, unsigned blocks) {
  float const global_scale = 0.75f;
  auto weight = w.weight;
  for (double& value : weight) value *= global_scale;
  auto x = random_numbers<T>(std::size_t(tokens) * w.k);
  if (std::is_same_v<T, __half>) {
    for (auto& value : x) value = T(float(value) * 0.01f);  // keep sums within float16
  }
  auto const bias = random_numbers<T>(with_bias ? w.rows : 0);
  std::vector<T> out(std::size_t(tokens) * w.rows);
  std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));
  gemv::Arguments const p{x.data(), {w.values.data(), w.positions.data(), w.scales.data()}, &global_scale,
                          with_bias ? bias.data() : nullptr, out.data(), tokens, w.rows, w.k};
  unsigned const tiles = (w.rows + 15) / 16;
  host::run({std::min(blocks, tiles), 1, 1}, {32 * kSlices * kTeams, 1, 1},
            gemv::shared_bytes<kGroups, kSlices, kTeams, kTurns>(tokens, w.k),
            [&] { gemv::gemv<T, kGroups, kSlices, kTeams, kTurns, 1>(p); });
  ++runs;
  if (right(out, x, weight, bias, tokens, w.rows, w.k)) return;
  ++wrong;
  std::printf("%d tokens, %d x %d, bias %d, %d slices, %d teams, %u blocks, f16 %d\n", tokens, w.rows, w.k, with_bias, kSlices, kTeams, blocks,
              std::is_same_v<T, __half>);
}

template <typename T>
void check_all(Weight const& w) {
  check<T, 1, 1, 8, true>(w, 1, false, 2);
  check<T, 1, 2, 4, true>(w, 7, true, 1);
  check<T, 1, 4, 2, true>(w, 8, false, 3);
  check<T, 1, 8, 1, true>(w, 3, true, 1);
  check<T, 1, 8, 1, false>(w, 5, true, 2);
  check<T, 2, 1, 8, true>(w, 16, true, 1);
  check<T, 2, 2, 4, true>(w, 9, true, 2);
  check<T, 2, 16, 1, false>(w, 12, false, 1);
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* const file = std::fopen(arguments[1], "rb");
  if (!file) return 2;
  for (int header[2]; std::fread(header, sizeof header, 1, file) == 1;) {
    std::size_t const tiles = std::size_t((header[0] + 15) / 16) * ((header[1] + 255) / 256);
    Weight const w{header[0], header[1], read<std::uint8_t>(file, tiles * gemv::kTileValueBytes),
                   read<std::uint8_t>(file, tiles * gemv::kTilePositionBytes), read<std::uint8_t>(file, tiles * gemv::kTileScaleBytes),
                   read<double>(file, std::size_t(header[0]) * header[1])};
    check_all<__nv_bfloat16>(w);
    check_all<__half>(w);
  }
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
