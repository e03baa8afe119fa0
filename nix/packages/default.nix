# What people build and run: `nix build .#NAME`, `nix run .#NAME`.
{ pkgs }:

{
  inherit (pkgs.gb10)
    cpu-env
    cuda-12x-env
    cuda-env
    cuda-toolkit
    demo-model
    flashinfer
    image
    image-cpu
    install-service
    install-service-cpu
    kernels
    kernels-sparse24
    quality
    serve
    serve-cuda
    serve-cuda-12x
    service
    service-cuda
    speculative
    vllm-fp4
    ;
  default = pkgs.gb10.serve;
}
