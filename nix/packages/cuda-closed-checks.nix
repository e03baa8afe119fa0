# That the closure of `serve-cuda` (8.6 GB) has the libraries that it needs, and its byte code: looked at apart from `nix flake
# check`, which looks at that of `serve`.
{ pkgs }:

let
  inherit (pkgs.gb10) python serve-cuda;
in
import ../checks/room.nix { inherit pkgs; } {
  name = "closed-cuda";
  tests = [
    ../../tests/nix/closed/conftest.py
    ../../tests/nix/closed/test_closed_bytecode.py
    ../../tests/nix/closed/test_closed_libraries.py
  ];
  sources = [ ../../tests/nix/closed/empty_root.py ];
  variables = {
    GB10_COMPILER = pkgs.stdenv.cc;
    GB10_CLOSURE = "serve-cuda";
    GB10_LOADER = pkgs.stdenv.cc.bintools.dynamicLinker;
    GB10_PYTHON = python.interpreter;
    exportReferencesGraph = [
      "serve-cuda.graph"
      serve-cuda
    ];
  };
}
