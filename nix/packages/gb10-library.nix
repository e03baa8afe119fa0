# What the lab takes of gb10: the formats, the kernels' bindings and the vLLM plug-in, without what serves.
{ pkgs }:

let
  inherit (pkgs.lib.fileset) toSource unions;
in
import ./python-package.nix { inherit pkgs; } {
  pname = "gb10-library";
  description = "What the laboratory takes of gb10 (the Python package)";
  commands = false;
  pyproject = ../../python/pyproject.toml;
  src = toSource {
    root = ../../python;
    fileset = unions (
      [
        ../../python/MANIFEST.in
        ../../python/pyproject.toml
      ]
      ++ map (name: ../../python/src/gb10 + "/${name}") [
        "__init__.py"
        "arguments.py"
        "checkpoint"
        "deaths.py"
        "errors.py"
        "files.py"
        "fp8.py"
        "kernels"
        "libraries.py"
        "machine"
        "nvfp4"
        "predict/__init__.py"
        "predict/architecture.py"
        "predict/architectures.toml"
        "predict/constants.toml"
        "predict/cost.py"
        "predict/measured.py"
        "predict/measurements.toml"
        "predict/routing.py"
        "predict/step.py"
        "py.typed"
        "segments.py"
        "sparse24"
        "units.py"
        "vllm_plugin"
      ]
    );
  };
}
