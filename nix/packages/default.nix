# What `nix build .#NAME` gives.
{ pkgs }:

{
  inherit (pkgs.gb10)
    corpus
    cpu-env
    cuda-aarch64-unpacked
    cuda-env
    cuda-toolkit
    test-env
    demo-model
    heldout
    kernels
    kernels-software
    quality
    report-env
    serve
    serve-cuda
    speculative
    vllm-fp4
    vllm-fp4-software
    ;
  default = pkgs.gb10.serve;
}
