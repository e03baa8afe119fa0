# The demo checkpoint: the trained model of models/testbed in NVFP4, the same bytes every time.
{ pkgs }:

let
  inherit (pkgs.gb10) python pythonPath wheels;
  inherit (pkgs.lib.fileset) toSource unions;
  # What the quantiser reads, so that another figure or word beside it makes no new model.
  source = toSource {
    root = ../..;
    fileset = unions [
      ../../models/testbed/calibration.json
      ../../models/testbed/config.json
      ../../models/testbed/generation_config.json
      ../../models/testbed/model.safetensors
      ../../models/testbed/tokenizer.json
      ../../models/testbed/tokenizer_config.json
      ../../python/src/gb10/__init__.py
      ../../python/src/gb10/arguments.py
      ../../python/src/gb10/checkpoint/__init__.py
      ../../python/src/gb10/checkpoint/modelopt.py
      ../../python/src/gb10/errors.py
      ../../python/src/gb10/files.py
      ../../python/src/gb10/nvfp4
      ../../lab/src/gb10_lab/__init__.py
      ../../lab/src/gb10_lab/__main__.py
      ../../lab/src/gb10_lab/cli.py
      ../../lab/src/gb10_lab/testbed/__init__.py
      ../../lab/src/gb10_lab/testbed/architecture.py
      ../../lab/src/gb10_lab/testbed/checkpoint.py
      ../../lab/src/gb10_lab/testbed/quantize.py
    ];
  };
  # torch, safetensors and typer, with what they import: not vLLM, whose patches change nothing here.
  needed = pkgs.gb10.commandLine // {
    inherit (wheels.cpu)
      filelock
      fsspec
      jinja2
      markupsafe
      mpmath
      networkx
      numpy
      safetensors
      sympy
      torch
      ;
  };
in
pkgs.runCommand "gb10-demo-model"
  {
    nativeBuildInputs = [ python ];
    PYTHONPATH = "${source}/python/src:${source}/lab/src:${pythonPath needed}";
    PYTHONDONTWRITEBYTECODE = true;
    passthru = { inherit source; };
    meta = import ./meta.nix { inherit pkgs; } {
      description = "Language model of 13.7 M parameters in NVFP4, trained on Python sources for demonstrations";
    };
  }
  ''
    python3 -m gb10_lab quantize --model ${source}/models/testbed --out "$out"
  ''
