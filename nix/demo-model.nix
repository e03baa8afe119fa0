# The demo checkpoint: made by the project's own package, the same bytes every time.
{ pkgs }:

pkgs.runCommand "gb10-demo-model" { nativeBuildInputs = [ pkgs.gb10.cpu-env ]; } ''
  python3 -m gb10.demo --out "$out"
''
