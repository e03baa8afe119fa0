// The kernel of kernels/nvfp4_search on the CPU: codes and scales that gb10.nvfp4.search gives, to the bit.
#include "numbers.h"

#include <cstdio>

#include "nvfp4_search/nvfp4_search.cuh"

namespace {

using namespace gb10::nvfp4_search;

template <typename V>
std::vector<V> take(std::FILE* file, std::size_t count) {
  std::vector<V> values(count);
  if (std::fread(values.data(), sizeof(V), count, file) != count) std::exit(2);
  return values;
}

template <typename T>
bool right(Problem p, std::vector<double> const& sums) {
  host::run({unsigned(p.rows), 1, 1}, {kThreads, 1, 1}, kSharedBytes, [&] { search<T>(p); });
  for (int i = 0; i < 2 * p.rows; ++i) {
    if (!(std::abs(p.squares[i] - sums[i]) <= 1e-12 * sums[i])) return false;
  }
  return true;
}

}  // namespace

// The file: for each weight rows, columns (of blocks) and whether it is f16; the global scale; the weight; codes, scales, sums.
int main(int, char** arguments) {
  std::FILE* const file = std::fopen(arguments[1], "rb");
  int sizes[3], runs = 0, wrong = 0;
  while (std::fread(sizes, sizeof sizes, 1, file) == 1) {
    auto const [rows, columns, is_half] = sizes;
    std::size_t const blocks = std::size_t(rows) * columns;
    auto const global = take<float>(file, 1);
    auto const weight = take<uint4>(file, 2 * blocks);
    auto const codes = take<uint2>(file, blocks);
    auto const scales = take<std::uint8_t>(file, blocks);
    auto const sums = take<double>(file, std::size_t(2) * rows);
    std::vector<uint2> made(blocks, uint2{0xA5A5A5A5u, 0xA5A5A5A5u});
    std::vector<std::uint8_t> made_scales(blocks, 0xA5);
    std::vector<double> squares(std::size_t(2) * rows, -1);
    Problem const p{weight.data(), global.data(), reinterpret_cast<std::uint8_t*>(made.data()), made_scales.data(), squares.data(),
                    rows,          columns};
    bool const sums_right = is_half ? right<__half>(p, sums) : right<__nv_bfloat16>(p, sums);
    bool const same = std::memcmp(made.data(), codes.data(), 8 * blocks) == 0 && made_scales == scales;
    if (!sums_right || !same) std::printf("%d x %d blocks, f16 %d: sums %d, codes %d\n", rows, columns, is_half, sums_right, same);
    ++runs;
    wrong += !sums_right || !same;
  }
  std::printf("%d runs, %d wrong\n", runs, wrong);
  return wrong != 0;
}
