# `nix run .#quality`: what NVFP4, FP8 and 2:4 do to the answers of the testbed model, and the check that it stays so.
{ pkgs }:

let
  inherit (pkgs.gb10) heldout report-env testbed;
  text = "${heldout}/heldout.jsonl";
in
{
  quality = pkgs.writeShellApplication {
    name = "quality";
    text = ''
      export GB10_TESTBED=''${GB10_TESTBED-${testbed}}
      export GB10_HELDOUT=''${GB10_HELDOUT-${text}}
      exec ${report-env}/bin/python3 -m gb10_lab.quality "$@"
    '';
  };

  # The plot and the figures of this machine; fails when a figure is not the recorded one.
  quality-check = pkgs.runCommand "gb10-check-quality" { nativeBuildInputs = [ report-env ]; } ''
    export HOME=$PWD
    python3 -m gb10_lab.quality --model ${testbed} --held-out ${text} --check ${testbed}/expectation.json --out "$out"
  '';
}
