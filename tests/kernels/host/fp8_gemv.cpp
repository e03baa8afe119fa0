// The kernel of kernels/fp8_gemv on the CPU against float64, with the software decode of both formats.
#include "numbers.h"

#include "fp8_gemv/fp8_gemv.cuh"

namespace {

namespace gemv = gb10::fp8_gemv;

int runs = 0, wrong = 0;

template <typename T, int kTokenTiles, int kWarps, bool kBlockScales, bool kStaged>
void check(int tokens, int rows, int k, bool with_bias, unsigned blocks) {
  std::vector<std::uint8_t> codes(std::size_t(rows) * k);
  for (auto& code : codes) {
    do code = random_bits();
    while ((code & 0x7F) == 0x7F);
  }
  int const scale_columns = (k + 127) / 128;
  std::vector<float> scales(kBlockScales ? (rows + 127) / 128 * scale_columns : rows);
  for (auto& scale : scales) scale = (random_bits() % 1000 + 1) * 1e-5f;
  std::vector<double> weight(codes.size());
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < k; ++i) {
      float const scale = kBlockScales ? scales[row / 128 * scale_columns + i / 128] : scales[row];
      weight[std::size_t(row) * k + i] = e4m3(codes[std::size_t(row) * k + i]) * scale;
    }
  }
  auto const x = random_numbers<T>(std::size_t(tokens) * k), bias = random_numbers<T>(with_bias ? rows : 0);
  std::vector<T> out(std::size_t(tokens) * rows);
  std::memset(static_cast<void*>(out.data()), 0xFF, out.size() * sizeof(T));
  gemv::Arguments const p{x.data(), codes.data(), scales.data(), with_bias ? bias.data() : nullptr, out.data(), tokens, rows, k};
  unsigned const tiles = (rows + 15) / 16;
  host::run({std::min(blocks, tiles), 1, 1}, {32 * kWarps, 1, 1}, gemv::shared_bytes<kTokenTiles, kWarps>(tokens, k, kStaged),
            [&] { gemv::gemv<T, kTokenTiles, kWarps, kBlockScales, kStaged>(p); });
  ++runs;
  if (right(out, x, weight, bias, tokens, rows, k)) return;
  ++wrong;
  std::printf("%d tokens, %d x %d, bias %d, %d warps, %u blocks, block scales %d, staged %d, f16 %d\n", tokens, rows, k, with_bias,
              kWarps, blocks, kBlockScales, kStaged, std::is_same_v<T, __half>);
}

template <typename T, bool kBlockScales>
void check_all() {
  check<T, 1, 4, kBlockScales, true>(1, 100, 2048, false, 3);
  check<T, 1, 4, kBlockScales, true>(3, 300, 64, true, 2);
  check<T, 1, 8, kBlockScales, true>(8, 50, 576, false, 1);
  check<T, 1, 16, kBlockScales, true>(5, 17, 320, true, 8);
  check<T, 1, 8, kBlockScales, false>(7, 33, 1344, true, 2);
  check<T, 2, 4, kBlockScales, true>(16, 150, 1088, true, 4);
  check<T, 2, 8, kBlockScales, true>(9, 1, 192, false, 4);
  check<T, 2, 16, kBlockScales, true>(13, 40, 4096, true, 1);
  check<T, 2, 8, kBlockScales, false>(11, 140, 640, false, 2);
}

}  // namespace

int main() {
  check_all<__nv_bfloat16, false>();
  check_all<__nv_bfloat16, true>();
  check_all<__half, false>();
  check_all<__half, true>();
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
