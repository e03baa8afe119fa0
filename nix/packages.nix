# What `nix build .#NAME` gives.
{ pkgs }:

{
  inherit (pkgs.gb10)
    cpu-env
    cuda-aarch64-unpacked
    cuda-env
    cuda-toolkit
    test-env
    demo-model
    serve
    serve-cuda
    ;
  default = pkgs.gb10.serve;
}
