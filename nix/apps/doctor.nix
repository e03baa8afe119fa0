# `nix run .#doctor`: what of this machine stops a server or slows it down, and what mends it.
#
# `doctor` is small and looks at everything that no kernel must run for; a Spark whose driver is broken needs no 4 GB to hear
# so. `doctor-cuda` is for the CUDA environment, which serves anyway: it runs the E2M1 instruction and reads the GPU's
# memory too. `doctor-cpu` and those with Ray are what the images have. None asks for the driver before it starts: that may be what
# is missing.
{ pkgs }:

let
  inherit (pkgs.gb10)
    cpu-env
    cpu-ray-env
    cuda-env
    cuda-ray-env
    kernels
    ;

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
  onCuda = name: doctor name "As doctor, and runs kernels on the GPU" ''
    export GB10_KERNELS=''${GB10_KERNELS:-${kernels}}
  '';
  onCpu = name: doctor name "As doctor, in the environment that serves on the CPU" "";
in
{
  doctor = doctor "doctor" "Says what of a machine stops a server of NVFP4 models, and what mends it" "" small;
  doctor-cpu = onCpu "doctor-cpu" cpu-env;
  doctor-cpu-ray = onCpu "doctor-cpu-ray" cpu-ray-env;
  doctor-cuda = onCuda "doctor-cuda" cuda-env;
  doctor-cuda-ray = onCuda "doctor-cuda-ray" cuda-ray-env;
}
