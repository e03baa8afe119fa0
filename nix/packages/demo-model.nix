# The demo checkpoint: the trained model of models/testbed in NVFP4, the same bytes every time.
{ pkgs }:

let
  # What the quantiser reads, so that another figure or word beside it makes no new model.
  testbed = builtins.path {
    name = "gb10-testbed";
    path = ../../models/testbed;
    filter =
      path: _:
      builtins.elem (baseNameOf path) [
        "calibration.json"
        "config.json"
        "generation_config.json"
        "model.safetensors"
        "tokenizer.json"
        "tokenizer_config.json"
      ];
  };
in
pkgs.runCommand "gb10-demo-model" { nativeBuildInputs = [ pkgs.gb10.cpu-env ]; } ''
  python3 -m gb10_lab quantize --model ${testbed} --out "$out"
''
