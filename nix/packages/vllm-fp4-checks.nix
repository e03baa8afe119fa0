# The machine code of vLLM's GEMM units, which take 7 GB of memory each to build: looked at apart from `nix flake check`.
{ pkgs }:

let
  sets = import ../checks/sets.nix;
in
import ../checks/room.nix { inherit pkgs; } {
  name = "vllm-fp4-gemm";
  tests = [ ../../tests/kernels/test_vllm_fp4_gemm.py ];
  sources = sets.machine-code;
  variables = {
    GB10_CUDA_TOOLKIT = pkgs.gb10.cuda-toolkit;
    GB10_VLLM_FP4_GEMM = pkgs.gb10.vllm-fp4-gemm;
  };
}
