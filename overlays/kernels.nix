# The project's own CUDA kernels, built by the toolkit of cccl.nix against torch's stable ABI (kernels/Makefile).
final: prev:

let
  build = import ../nix/packages/kernels.nix { pkgs = final; };
  kernels =
    route:
    build {
      name = "kernels";
      folders = [
        ../kernels/add_norm
        ../kernels/attention_front
        ../kernels/bandwidth
        ../kernels/fp8_gemv
        ../kernels/gdn_decode
        ../kernels/moe_decode
        ../kernels/moe_grouped
        ../kernels/moe_router
        ../kernels/nvfp4_dequantize
        ../kernels/nvfp4_gemv
        ../kernels/nvfp4_search
        ../kernels/quantize
      ];
      inherit route;
      description = "CUDA kernels for decoding NVFP4 models (E2M1 in ${route})";
    };
  sparse24 =
    route:
    build {
      name = "sparse24";
      folders = [ ../kernels/sparse24 ];
      inherit route;
      description = "CUDA kernels for NVFP4 weights kept 2 of 4 (E2M1 in ${route})";
    };
  vllmFp4 = import ../nix/packages/vllm-fp4.nix { pkgs = final; };
in
{
  gb10 = prev.gb10 // {
    # Machine code for sm_90a and the 12.x family, with the FP4 instructions where the GPU has them.
    kernels = kernels "hardware";
    # Machine code for generic sm_121: the software route, for comparison and for its check.
    kernels-software = kernels "software";

    # Weights kept 2 of 4: lossy and opt-in, so in a library of its own.
    kernels-sparse24 = sparse24 "hardware";
    kernels-sparse24-software = sparse24 "software";

    # vLLM's CUDA sources, patched, and what is built of them.
    vllm-source = import ../nix/packages/vllm-source.nix { pkgs = final; };
    vllm-tests = import ../nix/packages/vllm-tests.nix { pkgs = final; };
    vllm-fp4 = vllmFp4.hardware;
    vllm-fp4-software = vllmFp4.software;
    vllm-fp4-gemm = vllmFp4.gemm;
    vllm-fp4-checks = import ../nix/packages/vllm-fp4-checks.nix { pkgs = final; };
    vllm-wheel-checks = import ../nix/packages/vllm-wheel-checks.nix { pkgs = final; };
  };
}
