# `nix develop`: an environment, the tests' tools and this checkout's packages. `cpu` is the default, `cuda` is for GPUs.
{ pkgs }:

let
  shell =
    {
      name,
      description,
      packages,
      # Commands to go on with, as the shell's greeting has them.
      next,
      shellHook,
    }:
    pkgs.mkShell {
      inherit name;
      packages = packages ++ [ pkgs.util-linux ];
      shellHook = ''
        export GB10_DEMO_MODEL=${pkgs.gb10.demo-model} GB10_HELDOUT=${pkgs.gb10.heldout}/heldout.jsonl
        # Nix's build has /noshell for it.
        export SHELL=${pkgs.bashInteractive}/bin/bash
        gb10_next=${pkgs.writeText "${name}-next" "${description}. Next:\n${next}"}
        source ${./shell-hook.sh}
        ${shellHook}
      '';
      meta = import ./packages/meta.nix { inherit pkgs; } { inherit description; };
    };

  cpu = shell {
    name = "gb10-shell";
    description = "vLLM for the CPU, the tools of the tests and the packages of the checkout";
    packages = [ pkgs.gb10.dev-env ];
    next = ''
      gb10 serve                                   # the demo model, at http://127.0.0.1:8000/v1
      gb10 routing                                 # what runs where, and why
      pytest -c python/pyproject.toml tests/unit
      ./nixw fmt && ./nixw flake check             # before a commit
    '';
    shellHook = ''
      if [[ $- == *i* ]]; then
        source ${pkgs.gb10.completion}/gb10/share/bash-completion/completions/gb10
      fi
    '';
  };

  # To write kernels and to run them: the toolkit, the CUDA environment (4 GB of wheels) and this machine's driver.
  cuda = shell {
    name = "gb10-cuda-shell";
    description = "vLLM for NVIDIA GPUs, the CUDA compiler, the tools of the tests and the packages of the checkout";
    packages = [
      pkgs.gb10.cuda-dev-env
      pkgs.gb10.cuda-toolkit
      pkgs.stdenv.cc
    ];
    next = ''
      gb10 serve /path/to/model
      make -C kernels                              # then: export GB10_KERNELS=$PWD/kernels/build
      pytest -c python/pyproject.toml tests/gpu
    '';
    shellHook = ''
      # As kernels/Makefile and the tests read them: make -C kernels, pytest tests/kernels, pytest tests/gpu.
      export CUDA=${pkgs.gb10.cuda-toolkit} GB10_CUDA_TOOLKIT=${pkgs.gb10.cuda-toolkit}
      export TORCH=${pkgs.gb10.wheels.cuda.torch}/${pkgs.gb10.python.sitePackages}/torch
      # The kernels of the flake, until those of the checkout are built.
      export GB10_KERNELS=''${GB10_KERNELS:-${pkgs.gb10.kernels}}
      if gb10_driver=$(${pkgs.gb10.cuda-dev-env}/bin/python3 -m gb10.machine.driver); then
        export LD_LIBRARY_PATH=$gb10_driver TRITON_LIBCUDA_PATH=$gb10_driver
      else
        echo "gb10: without NVIDIA's driver kernels can be built here, and not run" >&2
      fi
      unset gb10_driver
    '';
  };
in
{
  inherit cpu cuda;
  default = cpu;
}
