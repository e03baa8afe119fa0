# `nix run .#predict -- MODEL`: how fast one GB10 should decode it. No vLLM and no GPU: it computes.
{ pkgs }:

let
  environment = pkgs.gb10.environment {
    name = "gb10-predict-env";
    description = "What `gb10 predict` imports, without vLLM";
    wheels = pkgs.gb10.commandLine;
    extra = [ pkgs.gb10.package ];
    isolated = true;
  };
in
pkgs.writeShellApplication {
  name = "predict";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Predicts the tokens a second of a model on one GB10";
  };
  text = import ./isolated.nix environment "gb10 predict";
}
