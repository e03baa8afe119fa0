# `nix run .#serve`: the command line with an environment, the demo model and the programs that it calls.
#
# The CPU half is part of it. The CUDA half (4 GB) is built when the program finds a GPU, from the derivation that this
# flake names: a machine without a GPU never downloads it. `serve-cuda-12x` is that half with FlashInfer's modules for
# GPUs of 12.x; they take long to compile, so nothing builds it that was not asked to.
{ pkgs }:

let
  inherit (pkgs.gb10)
    cpu-env
    cuda-12x-env
    cuda-env
    demo-model
    kernels
    ;
  isolated = import ./isolated.nix;

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
        # shellcheck source=/dev/null
        source ${./driver-libraries.sh}
        export GB10_DEMO_MODEL=''${GB10_DEMO_MODEL:-${demo-model}}
        export GB10_PROFILE=cuda
        # Our kernels: without them the engine is vLLM's own.
        export GB10_KERNELS=''${GB10_KERNELS:-${kernels}}
        # No compiler at run time: a kernel that was not built ahead is an error, not an hour of nvcc.
        export FLASHINFER_DISABLE_JIT=''${FLASHINFER_DISABLE_JIT:-1}
        ${isolated environment "gb10 serve"}
      '';
    };
  serve-cuda = serveCuda "serve-cuda" cuda-env "Serves NVFP4 models on NVIDIA GPUs with an OpenAI-compatible API";
  serve-cuda-12x = serveCuda "serve-cuda-12x" cuda-12x-env "As serve-cuda, with FlashInfer's modules for GPUs of compute capability 12.x";

  # Where to build a program: its derivation, of which nothing is needed before.
  later = package: "${builtins.unsafeDiscardOutputDependency package.drvPath}^out";
in
{
  inherit serve-cuda serve-cuda-12x;

  serve = pkgs.writeShellApplication {
    name = "serve";
    meta = meta {
      description = "Serves NVFP4 models on the CPU with an OpenAI-compatible API";
    };
    # vLLM's CPU platform asks lscpu for the cores.
    runtimeInputs = [ pkgs.util-linux ];
    text = ''
      profile=''${GB10_PROFILE:-}
      why="GB10_PROFILE=$profile"
      if [ -z "$profile" ]; then
        why="this machine has a GPU"
        if [ -e /dev/nvidiactl ]; then profile=cuda; else profile=cpu; fi
      fi
      if [ "$profile" = cuda ]; then
        nix=''${NIXW_PROGRAM:-nix}
        command -v "$nix" >/dev/null || {
          echo "gb10: error: $why, and fetching the CUDA half needs nix on PATH; add it, or set GB10_PROFILE=cpu" >&2
          exit 2
        }
        echo "$why: the CUDA half is fetched and built once (about 4 GB); GB10_PROFILE=cpu serves on the CPU instead" >&2
        cuda=$("$nix" --extra-experimental-features 'nix-command flakes' build --no-link --print-out-paths '${later serve-cuda}')
        exec "$cuda/bin/serve-cuda" "$@"
      fi
      export GB10_DEMO_MODEL=''${GB10_DEMO_MODEL:-${demo-model}}
      export GB10_PROFILE=$profile
      ${isolated cpu-env "gb10 serve"}
    '';
  };
}
