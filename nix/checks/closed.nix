# What runs touches nothing of the machine but /nix, /proc, /dev, /sys and a /tmp, and writes nothing into the store.
{ pkgs, room, ... }:

let
  inherit (pkgs.gb10) python serve wheels;
  inherit (pkgs.lib) getExe optionals;

  # Triton's wheel, where there is one: it compiles at run time.
  triton = wheels.test.triton or null;
in
{
  closed = room {
    name = "closed";
    tests = [ ../../tests/nix/closed ];
    variables = {
      GB10_COMPILER = pkgs.stdenv.cc;
      GB10_LOADER = pkgs.stdenv.cc.bintools.dynamicLinker;
      GB10_PYTHON = python.interpreter;
      GB10_RDMA = pkgs.rdma-core;
      GB10_SERVE_COMMAND = getExe serve;
      # The closures, as files in the folder of the build.
      exportReferencesGraph = [
        "compiler.graph"
        pkgs.stdenv.cc
        "python.graph"
        python
        "rdma.graph"
        pkgs.rdma-core
        "serve.graph"
        serve
      ]
      ++ optionals (triton != null) [
        "triton.graph"
        triton
      ];
    }
    // (if triton == null then { } else { GB10_TRITON = "${triton}/${python.sitePackages}"; });
  };
}
