# The laboratory: the small trained model, and what measures quality, drafts and kernels.
{ pkgs }:

let
  inherit (pkgs.lib.fileset) toSource unions;
in
import ./python-package.nix { inherit pkgs; } {
  pname = "gb10-lab";
  description = "Trains the testbed model and measures quality, drafts and kernels (the Python package)";
  pyproject = ../../lab/pyproject.toml;
  src = toSource {
    root = ../../lab;
    fileset = unions [
      ../../lab/pyproject.toml
      ../../lab/src
    ];
  };
}
