# One overlay per concern, and `default`: all of them in the order in which they build on each other.
{ lib }:

let
  overlays = {
    python = import ./python.nix;
    cccl = import ./cccl.nix;
    flashinfer = import ./flashinfer.nix;
    vllm = import ./vllm.nix;
    kernels = import ./kernels.nix;
    testbed = import ./testbed.nix;
  };
in
overlays
// {
  default = lib.composeManyExtensions [
    overlays.python
    overlays.cccl
    overlays.flashinfer
    overlays.vllm
    overlays.kernels
    overlays.testbed
  ];
}
