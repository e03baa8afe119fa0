# `nix run .#doctor`: what of this machine stops a server or slows it down, and what mends it.
#
# `doctor` is small and looks at everything that no kernel must run for; a Spark whose driver is broken needs no 4 GB to hear
# so. `doctor-cuda` is for the CUDA environment, which serves anyway: it runs the E2M1 instruction and reads the GPU's
# memory too. `doctor-cpu` is what the image for the CPU has. None asks for the driver before it starts: that may be what
# is missing.
{ pkgs }:

let
  inherit (pkgs.gb10) cpu-env cuda-env kernels;

  small = pkgs.gb10.environment {
    name = "gb10-doctor-env";
    description = "What `gb10 doctor` imports, without vLLM";
    wheels = pkgs.gb10.commandLine // {
      inherit (pkgs.gb10.wheels.cpu) psutil;
      inherit (pkgs.gb10.wheels.cuda) nvidia-ml-py;
    };
    extra = [ pkgs.gb10.package ];
    isolated = true;
  };

  meta = import ../packages/meta.nix { inherit pkgs; };
  doctor =
    name: description: before: environment:
    pkgs.writeShellApplication {
      inherit name;
      meta = meta { inherit description; };
      text = ''
        ${before}
        ${import ./isolated.nix environment "gb10 doctor"}
      '';
    };
in
{
  doctor = doctor "doctor" "Says what of a machine stops a server of NVFP4 models, and what mends it" "" small;
  doctor-cpu =
    doctor "doctor-cpu" "As doctor, in the environment that serves on the CPU" ""
      cpu-env;
  doctor-cuda = doctor "doctor-cuda" "As doctor, and runs kernels on the GPU" ''
    export GB10_KERNELS=''${GB10_KERNELS:-${kernels}}
  '' cuda-env;
}
