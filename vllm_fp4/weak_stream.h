// Included before vLLM's units (build.mk): torch for CPU has no such function. With a weak reference the library loads there, too,
// where its registration can be tested; its operators are for CUDA tensors and never get as far as this call there.
#pragma once

#include <cstdint>

extern "C" std::int32_t aoti_torch_get_current_cuda_stream(std::int32_t, void**) __attribute__((weak));
