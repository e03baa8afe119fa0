// The kernel of kernels/nvfp4_dequantize on the CPU: every value, to the bit.
#include "numbers.h"

#include "nvfp4_dequantize/nvfp4_dequantize.cuh"

namespace {

using namespace gb10::nvfp4_dequantize;

template <typename T>
bool right(int rows, int k, bool swizzled, int factor_rows) {
  int const columns = k / 16, tiles = columns / 4;
  std::vector<uint4> codes(std::size_t(rows) * k / 32), out(std::size_t(rows) * k / 8);
  std::vector<std::uint8_t> linear(std::size_t(rows) * columns), scales;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(codes.data());
  for (std::size_t i = 0; i < codes.size() * 16; ++i) bytes[i] = random_bits();
  for (auto& byte : linear) byte = random_bits() % 0x7F;
  scales = linear;
  if (swizzled) {
    scales.assign(std::size_t(rows + 127) / 128 * tiles * 512, 0x7F);
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        scales[(row / 128 * tiles + column / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + column % 4] =
            linear[row * columns + column];
      }
    }
  }
  std::vector<float> factors;
  for (int i = 0; i < factor_rows; ++i) factors.push_back(float(uniform(0.001, 0.01)));
  Problem const p{bytes, scales.data(), factor_rows ? factors.data() : nullptr, out.data(), rows, k, factor_rows};
  host::run({2, 1, 1}, {64, 1, 1}, 0, [&] { swizzled ? dequantize<T, true>(p) : dequantize<T, false>(p); });
  for (int row = 0; row < rows; ++row) {
    float const factor = factor_rows ? factors[factor_rows == 1 ? 0 : row] : 1.0f;
    for (int i = 0; i < k; ++i) {
      std::size_t const place = std::size_t(row) * k + i;
      float const step = float(e4m3(linear[row * columns + i / 16])) * factor;
      T const wanted(float(e2m1(bytes[place / 2] >> (i % 2 * 4) & 15)) * step);
      if (std::memcmp(reinterpret_cast<T const*>(out.data()) + place, &wanted, sizeof wanted) == 0) continue;
      std::printf("%d x %d, swizzled %d: row %d k %d\n", rows, k, swizzled, row, i);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  int runs = 0, failures = 0;
  for (bool swizzled : {false, true}) {
    for (int rows : {1, 3, 130}) {
      for (int k : {64, 192}) {
        for (int factor_rows : {0, 1, rows}) {
          runs += 2;
          failures += !right<__nv_bfloat16>(rows, k, swizzled, factor_rows);
          failures += !right<__half>(rows, k, swizzled, factor_rows);
        }
      }
    }
  }
  std::printf("%d runs, %d wrong\n", runs, failures);
  return failures != 0;
}
