// What every operator of the library does around its launch: refuse bad arguments by name, and run on torch's current stream.
//
// Only the stable C ABI of torch 2.10 is used, so one library serves 2.10 and newer and needs no libpython. Checks come in
// this order: dtype, shape, layout, and the device last; so all refusals can be seen without a GPU.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "gb10/types.h"

// Torch for CPU has no such function; the library loads there all the same, and refuses.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t, void**) __attribute__((weak));

namespace gb10::torch_op {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void refuse(char const* op, std::string const& why) {
  throw std::runtime_error("gb10::" + std::string(op) + ": " + why);
}

inline void require(bool holds, char const* op, std::string const& why) {
  if (!holds) refuse(op, why);
}

inline std::string shape_of(Tensor const& tensor) {
  std::ostringstream text;
  text << '[';
  for (std::int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

// For a tensor whose dtype has been checked.
inline Number number_of(Tensor const& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16: return Number::kBFloat16;
    case ScalarType::Half: return Number::kFloat16;
    default: return Number::kFloat32;
  }
}

inline char const* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    default: return "another dtype";
  }
}

inline void check_dtype(char const* op, char const* name, Tensor const& tensor, std::initializer_list<ScalarType> allowed) {
  std::string wanted;
  for (ScalarType type : allowed) {
    if (tensor.scalar_type() == type) return;
    wanted += std::string(wanted.empty() ? "" : " or ") + name_of(type);
  }
  refuse(op, std::string(name) + " is " + name_of(tensor.scalar_type()) + "; it must be " + wanted);
}

// A size of -1 is any size.
inline void check_shape(char const* op, char const* name, Tensor const& tensor, std::initializer_list<std::int64_t> wanted) {
  bool same = tensor.dim() == static_cast<std::int64_t>(wanted.size());
  std::ostringstream text;
  std::int64_t i = 0;
  for (std::int64_t size : wanted) {
    same = same && (size < 0 || tensor.size(i) == size);
    text << (i ? ", " : "");
    if (size < 0) text << "any";
    else text << size;
    ++i;
  }
  if (!same) refuse(op, std::string(name) + " has shape " + shape_of(tensor) + "; it must be [" + text.str() + "]");
}

// Its first byte is at a multiple of `alignment`.
inline void check_begin(char const* op, char const* name, Tensor const& tensor, std::size_t alignment) {
  require(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % alignment == 0, op,
          std::string(name) + " does not begin at a multiple of " + std::to_string(alignment) + " bytes; copy it first");
}

// The same, and contiguous.
inline void check_layout(char const* op, char const* name, Tensor const& tensor, std::size_t alignment) {
  require(tensor.is_contiguous(), op, std::string(name) + " is not contiguous; call .contiguous() first");
  check_begin(op, name, tensor, alignment);
}

inline void check_device(char const* op, char const* name, Tensor const& tensor, Tensor const& like) {
  require(tensor.is_cuda(), op, std::string(name) + " is not on a CUDA device; move it there first");
  require(tensor.get_device_index() == like.get_device_index(), op,
          std::string(name) + " is on CUDA device " + std::to_string(tensor.get_device_index()) +
              "; all tensors must be on device " + std::to_string(like.get_device_index()));
}

// A tensor of an operator, with what it must be apart from its shape.
struct Argument {
  char const* name;
  Tensor const* tensor;                      // null: an optional one that is not given
  std::initializer_list<ScalarType> dtypes;  // lives as long as the array of arguments it is written in
  std::size_t alignment;                     // of its first byte
};

inline Tensor const* given(std::optional<Tensor> const& tensor) { return tensor ? &*tensor : nullptr; }

// An operator lists its arguments once: Argument const arguments[] = {{"x", &x, {ScalarType::Half}, 16}, ...}. It checks their
// dtypes, then what it wants of the shapes, then the rest.
template <std::size_t kCount>
void check_dtypes(char const* op, Argument const (&arguments)[kCount]) {
  for (Argument const& a : arguments) {
    if (a.tensor) check_dtype(op, a.name, *a.tensor, a.dtypes);
  }
}

// The first argument is always given; the others must be on its device.
template <std::size_t kCount>
void check_layouts_and_devices(char const* op, Argument const (&arguments)[kCount]) {
  for (Argument const& a : arguments) {
    if (a.tensor) check_layout(op, a.name, *a.tensor, a.alignment);
  }
  for (Argument const& a : arguments) {
    if (a.tensor) check_device(op, a.name, *a.tensor, *arguments[0].tensor);
  }
}

// Makes the device of a tensor the current one for as long as it lives, and knows torch's current stream there.
class OnDeviceOf {
 public:
  OnDeviceOf(char const* op, Tensor const& tensor) : op_(op) {
    int const device = tensor.get_device_index();
    check(cudaGetDevice(&previous_));
    if (previous_ != device) check(cudaSetDevice(device));
    void* stream = nullptr;
    require(aoti_torch_get_current_cuda_stream != nullptr && aoti_torch_get_current_cuda_stream(device, &stream) == 0, op,
            "torch gave no CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
    device_ = device;
  }
  ~OnDeviceOf() {
    if (previous_ != device_) static_cast<void>(cudaSetDevice(previous_));
  }
  OnDeviceOf(OnDeviceOf const&) = delete;
  OnDeviceOf& operator=(OnDeviceOf const&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Turns the status of a CUDA call or of a launch into an error with the operator's name.
  void check(cudaError_t status) const {
    if (status != cudaSuccess) refuse(op_, std::string("CUDA said: ") + cudaGetErrorString(status));
  }

 private:
  char const* op_;
  int previous_ = 0;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
};

}  // namespace gb10::torch_op

// Registers `function` as gb10::name for CUDA tensors, and for CPU tensors so that it can refuse them by name.
// Used once for each operator, in one ops.cpp for each kernel:
//   GB10_OPERATOR(name, "name(Tensor x, Tensor(a!) out) -> ()", function)
#define GB10_OPERATOR(name, schema, function)                                                   \
  STABLE_TORCH_LIBRARY_FRAGMENT(gb10, library) { library.def(schema); }                         \
  STABLE_TORCH_LIBRARY_IMPL(gb10, CUDA, library) { library.impl(#name, TORCH_BOX(&function)); } \
  STABLE_TORCH_LIBRARY_IMPL(gb10, CPU, library) { library.impl(#name, TORCH_BOX(&function)); }
