// The launch of nvfp4_search.
#include "nvfp4_search.cuh"

namespace gb10::nvfp4_search {

cudaError_t launch(Problem const& p, Number number, cudaStream_t stream) {
  with_type(number, [&]<typename T>() { search<T><<<p.rows, kThreads, kSharedBytes, stream>>>(p); });
  return cudaGetLastError();
}

}  // namespace gb10::nvfp4_search
