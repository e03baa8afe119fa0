# What the project itself builds with and looks at, by name too: `nix build .#NAME`, in the flake's legacyPackages.
{ pkgs }:

{
  inherit (pkgs.gb10)
    corpus
    cuda-aarch64-unpacked
    cuda-closed-checks
    cuda-dev-env
    dev-env
    flashinfer-checks
    heldout
    kernels-software
    kernels-sparse24-software
    lab-env
    test-env
    vllm-fp4-checks
    vllm-fp4-software
    vllm-wheel-checks
    ;
}
