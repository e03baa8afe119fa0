# The program: steps.py with what it runs.
{
  pkgs,
  aarch64,
  name,
  # aarch64's environment, unpacked here.
  env,
  # aarch64's CUDA tools, as wheels.
  toolkit,
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

  plan = {
    inherit env name source;
    inherit (pkgs.gb10) demo-model testbed;
    inherit (python) sitePackages;
    heldout = "${pkgs.gb10.heldout}/heldout.jsonl";
    serve = pkgs.lib.getExe pkgs.gb10.serve;
    bash = "${aarch64.bash}/bin/bash";
    # aarch64's lscpu, which vLLM's CPU platform asks.
    programs = "${aarch64.util-linux}/bin";
    assembler = {
      x86_64 = "${pkgs.gb10.cuda-toolkit}/bin/ptxas";
      aarch64 = "${assembler}/bin/ptxas";
    };
  };
in
pkgs.writeShellApplication {
  inherit name;
  text = ''
    exec ${python}/bin/python3 -I ${./steps.py} ${pkgs.writeText "${name}.json" (builtins.toJSON plan)} "$@"
  '';
}
