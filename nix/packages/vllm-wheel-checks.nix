# The machine code of the pinned vLLM wheels of both systems, 640 MB: looked at apart from `nix flake check`.
{ pkgs }:

let
  sets = import ../checks/sets.nix;
  libraries =
    system:
    let
      wheels = pkgs.gb10.wheelhouse.wheelsOf {
        profile = "cuda";
        inherit system;
        changes = { };
      };
    in
    "${wheels.vllm}/${pkgs.gb10.python.sitePackages}/vllm";
in
import ../checks/room.nix { inherit pkgs; } {
  name = "vllm-wheel";
  tests = [ ../../tests/kernels/test_vllm_wheel_sass.py ];
  sources = sets.machine-code ++ sets.gb10 [ "machine" ];
  variables = {
    GB10_CUDA_TOOLKIT = pkgs.gb10.cuda-toolkit;
    GB10_VLLM_WHEELS = pkgs.runCommand "gb10-vllm-wheels" { } ''
      mkdir "$out"
      ln -s ${libraries "x86_64-linux"} "$out/x86_64-linux"
      ln -s ${libraries "aarch64-linux"} "$out/aarch64-linux"
    '';
  };
}
