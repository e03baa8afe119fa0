# `nix run .#speculative`: how many MTP drafts are accepted, and that they change nothing in the output.
{ pkgs }:

let
  inherit (pkgs.gb10)
    demo-model
    heldout
    lab-env
    testbed
    ;
in
pkgs.writeShellApplication {
  name = "speculative";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Measures how many MTP drafts are accepted, and that the output stays the same";
  };
  # vLLM's CPU platform asks lscpu for the cores.
  runtimeInputs = [ pkgs.util-linux ];
  text = ''
    export GB10_DEMO_MODEL=''${GB10_DEMO_MODEL:-${demo-model}}
    export GB10_HELDOUT=''${GB10_HELDOUT:-${heldout}/heldout.jsonl}
    export GB10_TESTBED=''${GB10_TESTBED:-${testbed}}
    ${import ./isolated.nix lab-env "gb10_lab speculative"}
  '';
}
