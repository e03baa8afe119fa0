# Of the closure of `serve-cuda` (8.6 GB), what needs a library that is not in the store: looked at apart from `nix flake
# check`, which asks that of `serve`.
{ pkgs }:

let
  inherit (pkgs.gb10) python serve-cuda;
in
import ../checks/room.nix { inherit pkgs; } {
  name = "closed-cuda";
  tests = [
    ../../tests/nix/closed/conftest.py
    ../../tests/nix/closed/test_closed_libraries.py
  ];
  sources = [ ../../tests/nix/closed/empty_root.py ];
  variables = {
    GB10_COMPILER = pkgs.stdenv.cc;
    GB10_LIBRARIES = "serve-cuda";
    GB10_LOADER = pkgs.stdenv.cc.bintools.dynamicLinker;
    GB10_PYTHON = python.interpreter;
    exportReferencesGraph = [
      "serve-cuda.graph"
      serve-cuda
    ];
  };
}
