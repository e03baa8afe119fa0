# What `nix flake check` builds: a check for each room of the tests, with its own source set, and the linters.
{ pkgs }:

let
  room = import ./room.nix { inherit pkgs; };
  sets = import ./sets.nix;
  parts = map (file: import file { inherit pkgs room sets; }) [
    ./unit.nix
    ./lab.nix
    ./kernels.nix
    ./patches.nix
    ./upstream.nix
    ./docs.nix
    ./e2e.nix
    ./meta.nix
    ./nix.nix
    ./closed.nix
    ./lint.nix
  ];
in
builtins.foldl' (all: part: all // part) { } parts
