# `nix develop`: the CPU profile, the tests' tools and this checkout's packages.
{ pkgs }:

let
  cpu = pkgs.mkShell {
    name = "gb10-shell";
    packages = [
      pkgs.gb10.dev-env
      pkgs.util-linux
    ];
    shellHook = ''
      # The checkout's packages, not those in the store.
      if [ -d python/src/gb10 ]; then export PYTHONPATH="$PWD/python/src:$PWD/lab/src''${PYTHONPATH:+:$PYTHONPATH}"; fi
      export GB10_DEMO_MODEL=${pkgs.gb10.demo-model} GB10_HELDOUT=${pkgs.gb10.heldout}/heldout.jsonl
      if [ -d models/testbed ]; then export GB10_TESTBED=$PWD/models/testbed; fi
    '';
  };
in
{
  inherit cpu;
  default = cpu;
}
