# `nix run .#predict -- MODEL`: how fast one GB10 should decode it, computed. What a checkpoint reads is asked of the audit,
# which asks vLLM, so it runs in the CPU environment.
{ pkgs }:

let
  inherit (pkgs.gb10) cpu-env;
in
pkgs.writeShellApplication {
  name = "predict";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Predicts the tokens a second of a model on one GB10";
  };
  text = import ./isolated.nix cpu-env "gb10 predict";
}
