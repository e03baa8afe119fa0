# The site of docs/, built strictly; and that this finds what is planted.
{ pkgs, room, ... }:

{
  inherit (pkgs.gb10) docs;

  docs-build = room {
    name = "docs-build";
    tests = [
      ../../nix/docs/hook.py
      ../../tests/nix/docs
    ];
    sources = [ ../../nix/docs/mkdocs.yml ];
    variables.PYTHONPATH = pkgs.gb10.pythonPath pkgs.gb10.wheels.docs;
  };
}
