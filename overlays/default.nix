# One overlay per concern, and `default`: all of them in the order in which they build on each other.
{ lib }:

let
  overlays = {
    wheels = import ./wheels.nix;
    cccl = import ./cccl.nix;
    flashinfer = import ./flashinfer.nix;
    torchvision = import ./torchvision.nix;
    vllm = import ./vllm.nix;
    kernels = import ./kernels.nix;
    lab = import ./lab.nix;
    apps = import ./apps.nix;
  };
in
overlays
// {
  default = lib.composeManyExtensions [
    overlays.wheels
    overlays.cccl
    overlays.flashinfer
    overlays.torchvision
    overlays.vllm
    overlays.kernels
    overlays.lab
    overlays.apps
  ];
}
