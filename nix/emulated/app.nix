# The plan of aarch64's CPU half: what steps.py runs and compares; cuda.nix has the other.
{
  pkgs,
  aarch64,
  name,
  # aarch64's environment, unpacked here.
  env,
  # aarch64's CUDA tools, as wheels.
  toolkit,
  # aarch64's kernels and kernels-software.
  kernels,
  # aarch64's image for the CPU.
  image,
}:

let
  inherit (pkgs.lib.fileset) toSource unions;
  sets = import ../checks/sets.nix;
  inherit (pkgs.gb10) python;

  # The tests and what they read.
  source = toSource {
    root = ../..;
    fileset = unions (
      [
        ../../python/pyproject.toml
        ../../nix/flashinfer/modules.toml
        ../../tests/confined
        ../../tests/conftest.py
        ../../tests/e2e
        ../../tests/kernels
        ../../tests/reference
        ../../tests/unit/machine
        ../../tests/unit/nvfp4
        ../../tests/unit/routing
        ../../tests/unit/vllm_plugin
      ]
      ++ sets.serve
      ++ sets.lab-base
      ++ sets.lab [
        "quality"
        "record.py"
        "speculative"
      ]
    );
  };

  # The wheel's programs are not executable.
  assembler = pkgs.runCommand "ptxas-aarch64" { } ''
    install -D -m 755 ${toolkit.nvidia-cuda-nvcc}/${python.sitePackages}/nvidia/cu13/bin/ptxas "$out/bin/ptxas"
  '';

  # Named, not built: that takes long, and one step alone asks for it.
  named = package: builtins.unsafeDiscardOutputDependency package.drvPath;
  derivations = x86_64: aarch64: builtins.mapAttrs (_system: named) { inherit x86_64 aarch64; };

  plan = {
    inherit env name source;
    inherit (pkgs.gb10) demo-model testbed;
    inherit (python) sitePackages;
    heldout = "${pkgs.gb10.heldout}/heldout.jsonl";
    serve = pkgs.lib.getExe pkgs.gb10.serve;
    # The Debian base's is written by this machine's Python: its hashes take QEMU half an hour.
    image =
      if image ? conf then
        {
          writer = [
            "${python}/bin/python3"
            "-I"
            "${../debian/docker/stream.py}"
            "image"
          ];
          derivation = named image.conf;
        }
      else
        {
          writer = [ ];
          derivation = named image;
        };
    bash = "${aarch64.bash}/bin/bash";
    # aarch64's lscpu, which vLLM's CPU platform asks.
    programs = "${aarch64.util-linux}/bin";
    assembler = {
      x86_64 = "${pkgs.gb10.cuda-toolkit}/bin/ptxas";
      aarch64 = "${assembler}/bin/ptxas";
    };
    kernels = {
      routes = {
        hardware = derivations pkgs.gb10.kernels kernels.kernels;
        software = derivations pkgs.gb10.kernels-software kernels.kernels-software;
      };
      cuobjdump = "${pkgs.gb10.cuda-toolkit}/bin/cuobjdump";
      # CUDA's runtime, which torch for the CPU has not.
      runtime = {
        x86_64 = pkgs.gb10.cuda-toolkit;
        aarch64 = "${toolkit.nvidia-cuda-runtime}/${python.sitePackages}/nvidia/cu13";
      };
      python = "${pkgs.gb10.cpu-env}/bin/python3";
      operators = ./operators.py;
    };
  };
in
import ./program.nix { inherit pkgs plan; }
