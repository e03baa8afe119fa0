# `nix develop`: the test environment, which holds the CPU profile, the linters and this project's package.
{ pkgs }:

let
  cpu = pkgs.mkShell {
    name = "gb10-shell";
    packages = [
      pkgs.gb10.test-env
      pkgs.util-linux
    ];
    shellHook = ''
      # The checkout's package, not the one in the store.
      if [ -d python/src/gb10 ]; then export PYTHONPATH="$PWD/python/src''${PYTHONPATH:+:$PYTHONPATH}"; fi
      export GB10_DEMO_MODEL=${pkgs.gb10.demo-model} GB10_HELDOUT=${pkgs.gb10.heldout}/heldout.jsonl
      if [ -d models/testbed ]; then export GB10_TESTBED=$PWD/models/testbed; fi
    '';
  };
in
{
  inherit cpu;
  default = cpu;
}
