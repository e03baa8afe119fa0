# The machine code of FlashInfer's modules. All of them take an hour and more to compile: looked at apart from
# `nix flake check`, which has the smallest group.
{ pkgs }:

# A package of modules.
modules:

let
  sets = import ../checks/sets.nix;
in
import ../checks/room.nix { inherit pkgs; } {
  name = "flashinfer";
  tests = [ ../../tests/kernels/test_flashinfer_modules.py ];
  sources = sets.machine-code ++ sets.gb10 [ "machine" ];
  variables = {
    GB10_CUDA_TOOLKIT = pkgs.gb10.cuda-toolkit;
    GB10_FLASHINFER_CUDA_HOME = pkgs.gb10.flashinfer.cuda-home;
    GB10_FLASHINFER = "${modules}/${pkgs.gb10.python.sitePackages}";
    GB10_KERNELS = pkgs.gb10.kernels;
    GB10_KERNELS_SOFTWARE = pkgs.gb10.kernels-software;
  };
}
