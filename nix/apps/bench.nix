# `nix run .#bench -- URL|PORT`: how fast a server answers. vLLM's client out of the CPU environment, and what draws plots.
#
# It works beside any server: it loads no model and no kernel. `serve-cuda` has the same command without plots.
{ pkgs }:

let
  environment = import ./drawing.nix { inherit pkgs; };
in
pkgs.writeShellApplication {
  name = "bench";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Measures how fast a server answers, and compares";
  };
  # vLLM's CPU platform asks lscpu for the cores.
  runtimeInputs = [ pkgs.util-linux ];
  # `run` starts servers, whose environment is the caller's: the driver's place is not written into it.
  text = import ./isolated.nix environment "gb10 bench";
}
