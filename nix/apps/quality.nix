# `nix run .#quality`: what NVFP4, FP8 and 2:4 do to the answers of the testbed model.
{ pkgs }:

let
  inherit (pkgs.gb10) heldout lab-env testbed;
in
pkgs.writeShellApplication {
  name = "quality";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Measures what NVFP4, FP8 and 2:4 cost the testbed model in quality";
  };
  text = ''
    export GB10_TESTBED=''${GB10_TESTBED:-${testbed}}
    export GB10_HELDOUT=''${GB10_HELDOUT:-${heldout}/heldout.jsonl}
    ${import ./isolated.nix lab-env "gb10_lab quality"}
  '';
}
