# What `nix build .#NAME` gives.
{ pkgs }:

{
  inherit (pkgs.gb10)
    corpus
    cpu-env
    cuda-12x-env
    cuda-aarch64-unpacked
    cuda-closed-checks
    cuda-env
    cuda-toolkit
    demo-model
    flashinfer
    flashinfer-checks
    heldout
    kernels
    kernels-software
    kernels-sparse24
    kernels-sparse24-software
    lab-env
    quality
    serve
    serve-cuda
    serve-cuda-12x
    speculative
    test-env
    vllm-fp4
    vllm-fp4-checks
    vllm-fp4-software
    vllm-wheel-checks
    ;
  default = pkgs.gb10.serve;
}
