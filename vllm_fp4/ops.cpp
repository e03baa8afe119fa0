// vLLM's NVFP4 quantisation operators under their own names, from vLLM's source with patches/vllm/csrc.
//
//   operator (namespace _C)                  input            packed output    block scales
//   scaled_fp4_quant, scaled_fp4_quant.out   [M, K]           [M, K/2]         swizzled or linear
//   silu_and_mul_nvfp4_quant                 [M, 2K]          [M, K/2]         swizzled
//   scaled_fp4_experts_quant                 [M, K]           [M, K/2]         swizzled, per expert
//   silu_and_mul_scaled_fp4_experts_quant    [M, 2K]          [M, K/2]         swizzled, per expert
//
// Input is BF16 or FP16, K a multiple of 16. The scale argument is the reciprocal of a checkpoint's input_scale:
// block scale = UE4M3(scale * amax / 6), code = E2M1(x * scale / block scale), with vLLM's approximate reciprocals.
// "Swizzled" is the 128x4 layout: round_up(M, 128) rows of round_up(K/16, 4) bytes.
//
// Nothing is registered when the library is loaded. gb10_vllm_fp4_install() puts these kernels in front of what _C has for
// CUDA, gb10_vllm_fp4_uninstall() takes them away again and the kernels from before are back. The dispatcher of torch keeps
// all kernels of an operator in a list and calls the newest, so the order of loading does not matter and no Python runs in
// between. The operators must have a schema by then (python/src/gb10/vllm_plugin/cuda/fp4_ops.py sees to it).
//
// vLLM's entry points check little. What would read or write outside of a tensor is refused here, by name.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <string>
#include <tuple>

#include <cuda_runtime_api.h>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "ops.h"  // vLLM's declarations

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t block_size = 16;  // values that share a block scale
constexpr std::int64_t tile_rows = 128;  // of the swizzled layout
constexpr std::int64_t tile_columns = 4;
constexpr std::int64_t load_bytes = 32;     // widest load of vLLM's kernels
constexpr std::int64_t store_bytes = 8;     // widest store
constexpr std::int64_t offsets_bytes = 16;  // expert offsets are read as int4

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

std::int64_t bytes_of(Tensor const& tensor) { return tensor.numel() * static_cast<std::int64_t>(tensor.element_size()); }

void check_memory(Tensor const& tensor, char const* name, Tensor const& input, std::int64_t alignment) {
  STD_TORCH_CHECK(tensor.is_cuda(), name, " is not on a CUDA device");
  STD_TORCH_CHECK(tensor.get_device_index() == input.get_device_index(), name, " is on device ", tensor.get_device_index(),
                  ", input is on device ", input.get_device_index());
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous");
  STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % alignment == 0, name, " does not start at a multiple of ",
                  alignment, " bytes");
}

// Gives K: the values per row that come out.
std::int64_t check_input(Tensor const& input, std::int64_t halves) {
  check_memory(input, "input", input, load_bytes);
  STD_TORCH_CHECK(input.dim() == 2, "input has ", input.dim(), " dimensions, 2 are wanted");
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Half || input.scalar_type() == ScalarType::BFloat16,
                  "input is neither float16 nor bfloat16");
  STD_TORCH_CHECK(input.size(1) % (halves * block_size) == 0, "input has rows of ", input.size(1), " values, a multiple of ",
                  halves * block_size, " is wanted");
  STD_TORCH_CHECK(input.size(0) <= INT32_MAX && input.size(1) <= INT32_MAX, "input has more than 2^31 rows or columns");
  return input.size(1) / halves;
}

void check_global_scale(Tensor const& scale, char const* name, Tensor const& input) {
  check_memory(scale, name, input, sizeof(float));
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, name, " is not float32");
  STD_TORCH_CHECK(scale.numel() >= 1, name, " is empty");
}

void check_packed(Tensor const& output, char const* name, Tensor const& input) {
  check_memory(output, name, input, store_bytes);
  STD_TORCH_CHECK(output.element_size() == 1, name, " has elements of ", output.element_size(), " bytes, 1 is wanted");
  STD_TORCH_CHECK(output.dim() == 2 && output.size(0) == input.size(0), name, " is not of shape [", input.size(0), ", K/2]");
}

void check_scales(Tensor const& scales, char const* name, Tensor const& input, std::int64_t bytes) {
  check_memory(scales, name, input, sizeof(std::int32_t));
  STD_TORCH_CHECK(bytes_of(scales) >= bytes, name, " has ", bytes_of(scales), " bytes, ", bytes, " are written");
}

std::int64_t scale_bytes(std::int64_t rows, std::int64_t columns, bool swizzled) {
  std::int64_t const blocks = columns / block_size;
  return swizzled ? round_up(rows, tile_rows) * round_up(blocks, tile_columns) : rows * blocks;
}

// vLLM does not look at what its launches return.
void check_launch(char const* name) {
  cudaError_t const status = cudaGetLastError();
  STD_TORCH_CHECK(status == cudaSuccess, name, ": ", cudaGetErrorString(status));
}

void quant_out(Tensor const& input, Tensor const& input_scale, bool swizzled, Tensor& output, Tensor& output_scale) {
  std::int64_t const k = check_input(input, 1);
  check_global_scale(input_scale, "input_scale", input);
  check_packed(output, "output", input);
  std::int64_t const padded_k = 2 * output.size(1);
  STD_TORCH_CHECK(padded_k >= k && padded_k % block_size == 0, "output has rows of ", output.size(1),
                  " bytes; a multiple of 8 and at least ", k / 2, " is wanted");
  check_scales(output_scale, "output_scale", input, scale_bytes(input.size(0), padded_k, swizzled));
  if (input.numel() == 0) return;
  scaled_fp4_quant_out(input, input_scale, swizzled, output, output_scale);
  check_launch("scaled_fp4_quant");
}

std::tuple<Tensor, Tensor> quant(Tensor const& input, Tensor const& input_scale, bool swizzled) {
  std::int64_t const rows = input.dim() == 2 ? input.size(0) : 0;
  std::int64_t const k = check_input(input, 1);
  auto const device = input.device();
  Tensor output = torch::stable::empty({rows, k / 2}, ScalarType::Byte, std::nullopt, device);
  Tensor scales = swizzled
                      ? torch::stable::empty({round_up(rows, tile_rows), round_up(k / block_size, tile_columns) / tile_columns},
                                             ScalarType::Int, std::nullopt, device)
                      : torch::stable::empty({rows, k / block_size}, ScalarType::Byte, std::nullopt, device);
  quant_out(input, input_scale, swizzled, output, scales);
  return {output, scales};
}

void silu_quant(Tensor& result, Tensor& block_scale, Tensor& input, Tensor& global_scale) {
  std::int64_t const k = check_input(input, 2);
  check_global_scale(global_scale, "input_global_scale", input);
  check_packed(result, "result", input);
  STD_TORCH_CHECK(2 * result.size(1) == k, "result has rows of ", result.size(1), " bytes, ", k / 2, " are wanted");
  check_scales(block_scale, "result_block_scale", input, scale_bytes(input.size(0), k, true));
  if (input.numel() == 0) return;
  silu_and_mul_nvfp4_quant(result, block_scale, input, global_scale);
  check_launch("silu_and_mul_nvfp4_quant");
}

// How many bytes of scales the experts need is on the GPU, in the offsets: vLLM's callers answer for it.
template <std::int64_t halves, auto run>
void experts_quant(Tensor& output, Tensor& output_scale, Tensor const& input, Tensor const& global_scale,
                   Tensor const& input_offsets, Tensor const& scale_offsets) {
  check_input(input, halves);
  check_global_scale(global_scale, "input_global_scale", input);
  check_packed(output, "output", input);
  check_scales(output_scale, "output_scale", input, 0);
  check_memory(input_offsets, "input_offset_by_experts", input, offsets_bytes);
  check_memory(scale_offsets, "output_scale_offset_by_experts", input, sizeof(std::int32_t));
  if (input.numel() == 0) return;
  run(output, output_scale, input, global_scale, input_offsets, scale_offsets);
  check_launch(halves == 1 ? "scaled_fp4_experts_quant" : "silu_and_mul_scaled_fp4_experts_quant");
}

using torch::stable::detail::StableLibrary;
StableLibrary* installed = nullptr;

// The message stays readable until the next call.
template <typename Action>
char const* message_of(Action action) {
  static std::string message;
  try {
    action();
    return nullptr;
  } catch (std::exception const& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

#define GB10_EXPORT extern "C" __attribute__((visibility("default")))

// Both give null, or why it did not work. Calling one twice changes nothing.
GB10_EXPORT char const* gb10_vllm_fp4_install() {
  return message_of([] {
    if (installed != nullptr) return;
    auto* library = new StableLibrary(StableLibrary::Kind::IMPL, "_C", "CUDA", __FILE_NAME__, __LINE__);
    library->impl("scaled_fp4_quant", TORCH_BOX(&quant))
        .impl("scaled_fp4_quant.out", TORCH_BOX(&quant_out))
        .impl("silu_and_mul_nvfp4_quant", TORCH_BOX(&silu_quant))
        .impl("scaled_fp4_experts_quant", TORCH_BOX((&experts_quant<1, &scaled_fp4_experts_quant>)))
        .impl("silu_and_mul_scaled_fp4_experts_quant", TORCH_BOX((&experts_quant<2, &silu_and_mul_scaled_fp4_experts_quant>)));
    installed = library;
  });
}

GB10_EXPORT char const* gb10_vllm_fp4_uninstall() {
  return message_of([] {
    delete installed;
    installed = nullptr;
  });
}
