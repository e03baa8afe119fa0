# `nix run .#recipes`: what is known to be good for a model on a Spark. `check` asks vLLM, and any build of it knows.
{ pkgs }:

pkgs.writeShellApplication {
  name = "recipes";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Lists, shows, checks and imports recipes for serve --recipe";
  };
  # vLLM's CPU platform asks lscpu for the cores.
  runtimeInputs = [ pkgs.util-linux ];
  text = import ./isolated.nix pkgs.gb10.cpu-env "gb10 recipes";
}
