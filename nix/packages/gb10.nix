# The package that serves.
{ pkgs }:

let
  inherit (pkgs.lib.fileset) toSource unions;
in
import ./python-package.nix { inherit pkgs; } {
  pname = "gb10";
  description = "Serves NVFP4 language models with vLLM (the Python package)";
  pyproject = ../../python/pyproject.toml;
  src = toSource {
    root = ../../python;
    fileset = unions [
      ../../python/MANIFEST.in
      ../../python/pyproject.toml
      ../../python/src
    ];
  };
}
