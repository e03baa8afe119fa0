# What serves: the command line with an environment of one profile, the demo model and the programs that it calls.
#
# `serve` is for the CPU, `serve-cuda` for a GPU (4 GB); neither builds or fetches the other at run time, and both look at
# the machine and say which one it wants (gb10.serve.run). `serve-cuda-12x` has FlashInfer's modules for GPUs of 12.x too;
# they take long to compile, so nothing builds it that was not asked to. `serve-ray` and `serve-cuda-ray` are the first two
# with Ray beside vLLM.
{ pkgs }:

let
  inherit (pkgs.gb10)
    cpu-env
    cpu-ray-env
    cuda-12x-env
    cuda-env
    cuda-ray-env
    demo-model
    kernels
    ;
  isolated = import ./isolated.nix;
  driverLibraries = import ./driver-libraries.nix;

  meta = import ../packages/meta.nix { inherit pkgs; };

  serveCuda =
    name: environment: description:
    pkgs.writeShellApplication {
      inherit name;
      meta = meta { inherit description; };
      # Triton compiles its launchers with a C compiler.
      runtimeInputs = [
        pkgs.stdenv.cc
        pkgs.util-linux
      ];
      text = ''
        ${driverLibraries environment}
        ${import ./rdma.nix { inherit pkgs; }}
        # Our kernels: without them the engine is vLLM's own.
        export GB10_KERNELS=''${GB10_KERNELS:-${kernels}}
        # No compiler at run time: a kernel that was not built ahead is an error, not an hour of nvcc.
        export FLASHINFER_DISABLE_JIT=''${FLASHINFER_DISABLE_JIT:-1}
        ${isolated environment "gb10 serve"}
      '';
    };

  serveCpu =
    name: environment: description:
    pkgs.writeShellApplication {
      inherit name;
      meta = meta { inherit description; };
      # vLLM's CPU platform asks lscpu for the cores.
      runtimeInputs = [ pkgs.util-linux ];
      text = ''
        export GB10_DEMO_MODEL=''${GB10_DEMO_MODEL:-${demo-model}}
        ${isolated environment "gb10 serve"}
      '';
    };
in
{
  serve-cuda =
    serveCuda "serve-cuda" cuda-env
      "Serves NVFP4 models on NVIDIA GPUs with an OpenAI-compatible API";
  serve-cuda-12x =
    serveCuda "serve-cuda-12x" cuda-12x-env
      "As serve-cuda, with FlashInfer's modules for GPUs of compute capability 12.x";

  serve-cuda-ray =
    serveCuda "serve-cuda-ray" cuda-ray-env
      "As serve-cuda, with Ray for vLLM's executor of that name";

  serve = serveCpu "serve" cpu-env "Serves NVFP4 models on the CPU with an OpenAI-compatible API";
  serve-ray = serveCpu "serve-ray" cpu-ray-env "As serve, with Ray for vLLM's executor of that name";
}
