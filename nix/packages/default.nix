# What people build and run: `nix build .#NAME`, `nix run .#NAME`.
{ pkgs }:

{
  inherit (pkgs.gb10)
    cluster
    cpu-env
    cuda-12x-env
    cuda-env
    cuda-toolkit
    demo-model
    flashinfer
    image
    image-cpu
    kernels
    kernels-sparse24
    quality
    serve
    serve-cuda
    serve-cuda-12x
    speculative
    vllm-fp4
    ;
  default = pkgs.gb10.serve;
}
