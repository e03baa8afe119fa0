// The launches of the quantisation kernels, one instance for each dtype, layout and source.
#include "quantize.cuh"

namespace gb10::quantize {
namespace {

constexpr unsigned kMaximumY = 32768;

// So many blocks of 16 values are better spread one to a thread than done two or four by one.
constexpr std::int64_t kFew = 1 << 17;

// So often a warp moves on along its rows before another searches for their expert.
constexpr int kExpertParts = 4;

template <typename T>
cudaError_t launch_flat(Problem const& p, cudaStream_t stream) {
  std::int64_t const blocks = static_cast<std::int64_t>(p.rows) * p.columns;
  int const span = blocks <= kFew ? kThreads : kThreads * kFlatPart<T>;
  flat_kernel<T><<<static_cast<unsigned>((blocks + span - 1) / span), kThreads, 0, stream>>>(p, span);
  return cudaGetLastError();
}

template <typename T, Layout kLayout, bool kGated>
cudaError_t launch_tiles(Problem const& p, cudaStream_t stream) {
  using Warp = Tile<kLayout>;
  constexpr int kRows = kWarps * Warp::kRows;
  // Columns past the last one up to a multiple of 4 are padding, and in the same tile.
  unsigned const groups = (static_cast<unsigned>(p.scale_rows) + kRows - 1) / kRows;
  dim3 grid;
  constexpr int kColumns = Warp::kColumns * (kLayout == Layout::kExperts ? kExpertParts : 1);
  grid.x = static_cast<unsigned>((p.columns + kColumns - 1) / kColumns);
  grid.y = groups < kMaximumY ? groups : kMaximumY;
  grid.z = (groups + grid.y - 1) / grid.y;
  tile_kernel<T, kLayout, kGated><<<grid, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_for(Problem const& p, Layout layout, bool gated, cudaStream_t stream) {
  switch (layout) {
    case Layout::kLinear: return gated ? launch_tiles<T, Layout::kLinear, true>(p, stream) : launch_flat<T>(p, stream);
    case Layout::kSwizzled:
      return gated ? launch_tiles<T, Layout::kSwizzled, true>(p, stream) : launch_tiles<T, Layout::kSwizzled, false>(p, stream);
    case Layout::kExperts:
      if (!gated) return launch_tiles<T, Layout::kExperts, false>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch(Problem const& problem, Number number, Layout layout, bool gated, cudaStream_t stream) {
  if (number == Number::kFloat32) return launch_for<float>(problem, layout, gated, stream);
  return with_type(number, [&]<typename T>() { return launch_for<T>(problem, layout, gated, stream); });
}

}  // namespace gb10::quantize
