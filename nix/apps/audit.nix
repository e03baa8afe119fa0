# `nix run .#audit -- MODEL`: what a decoded token reads of a model and what fits, from its config and headers. It asks vLLM
# in which format each module is, so it runs in the CPU environment, with matplotlib for --plot.
{ pkgs }:

let
  environment = import ./drawing.nix { inherit pkgs; };
in
pkgs.writeShellApplication {
  name = "audit";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Says what a decoded token reads of a model and what fits, from its headers";
  };
  text = ''
    ${import ./isolated.nix environment "gb10 audit"}
  '';
}
