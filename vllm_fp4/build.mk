# Builds libgb10_vllm_fp4.so: vLLM's NVFP4 quantisation units with patches/vllm/csrc, and our registration of them.
#
#   make -f build.mk CUDA=<toolkit> TORCH=<torch package> CUTLASS=<include folder of nvidia-cutlass>
#     VLLM=<unpacked and patched sdist of vllm 0.32.0> OUT=<folder> [ROUTE=hardware|software] [INCLUDE=<kernels/include>] [library|gemm]
#
# ROUTE=hardware  machine code for sm_90 (software E2M1) and for the 12.x family (sm_120f, the instruction)
# ROUTE=software  machine code for generic sm_121, software E2M1. Apart, because a GPU of 12.1 would choose it over sm_120f.
# gemm            the CUTLASS block-scaled GEMM units of vLLM, objects only, for the SASS check. sm_120f, 7 GB of memory each.
# Headers only: of CUTLASS (vLLM's common.hpp); shim/ stands for cuBLAS's.
CUDA ?= $(error CUDA: the folder of the CUDA toolkit)
TORCH ?= $(error TORCH: the folder of the torch package)
CUTLASS ?= $(error CUTLASS: the include folder of nvidia-cutlass)
VLLM ?= $(error VLLM: the unpacked and patched sdist)
OUT ?= build
ROUTE ?= hardware
CXX ?= g++

here := $(dir $(lastword $(MAKEFILE_LIST)))
INCLUDE ?= $(here)../kernels/include
fp4 := csrc/quantization/fp4
units := $(fp4)/nvfp4_quant_kernels $(fp4)/activation_nvfp4_quant_fusion_kernels $(fp4)/nvfp4_experts_quant $(fp4)/nvfp4_quant_entry \
  csrc/cuda_utils_kernels
objects := $(patsubst %,$(OUT)/%.cu.o,$(notdir $(units)))
gemm_objects := $(OUT)/nvfp4_scaled_mm_sm120_kernels.cu.o $(OUT)/nvfp4_blockwise_moe_kernel.cu.o

targets.hardware := -gencode arch=compute_90,code=sm_90 -gencode arch=compute_120f,code=sm_120f
targets.software := -gencode arch=compute_121,code=sm_121 -DGB10_FP4_SOFTWARE
gemm_targets := -gencode arch=compute_120f,code=sm_120f
headers := -I$(INCLUDE) -I$(VLLM)/csrc -isystem $(TORCH)/include -isystem $(here)shim -isystem $(CUTLASS) \
  -isystem $(CUTLASS)/../tools/util/include -isystem $(CUDA)/include/cccl
# vLLM sets the same: stable ABI of torch 2.11 and newer.
defines := -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -DENABLE_NVFP4_SM120=1 -DENABLE_NVFP4_SOFTWARE=1
# 2908: CUTLASS captures `this` in a way that C++20 deprecates.
# -objtemp: as in kernels/Makefile, so that no process id is in the object.
nvcc := $(CUDA)/bin/nvcc -objtemp -ccbin $(CXX) -std=c++20 -O3 --expt-relaxed-constexpr -diag-suppress 2908 \
  -Xcompiler -fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden -include $(here)weak_stream.h $(headers) $(defines)

library: $(OUT)/libgb10_vllm_fp4.so

gemm: $(gemm_objects)

.PHONY: library gemm

# torch's libraries are found in the process that has loaded torch; which one has the CUDA functions is libtorch.so's business.
$(OUT)/libgb10_vllm_fp4.so: $(objects) $(OUT)/ops.cpp.o
	$(CXX) -shared -o $@ $^ -Wl,--no-as-needed -L$(TORCH)/lib -ltorch -ltorch_cpu -Wl,--as-needed -L$(CUDA)/lib -l:libcudart.so.13

$(gemm_objects): $(OUT)/%.cu.o: $(VLLM)/$(fp4)/%.cu
	@mkdir -p $(OUT)
	$(nvcc) $(gemm_targets) -DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL=1 -c -o $@ $<

$(OUT)/%.cu.o: $(VLLM)/$(fp4)/%.cu
	@mkdir -p $(OUT)
	$(nvcc) $(targets.$(ROUTE)) -c -o $@ $<

$(OUT)/%.cu.o: $(VLLM)/csrc/%.cu
	@mkdir -p $(OUT)
	$(nvcc) $(targets.$(ROUTE)) -c -o $@ $<

$(OUT)/ops.cpp.o: $(here)ops.cpp
	@mkdir -p $(OUT)
	$(CXX) -std=c++20 -O2 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -isystem $(CUDA)/include $(headers) $(defines) -c -o $@ $<
