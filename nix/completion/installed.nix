# A program as people install it: with its completion beside it. Checks and images take the program alone.
{ pkgs }:

name:
let
  program = pkgs.gb10.${name};
in
pkgs.runCommand name { meta = program.meta // { inherit (pkgs.gb10.completion.meta) license; }; } ''
  mkdir "$out"
  ln -s ${program}/bin "$out/bin"
  cp -r ${pkgs.gb10.completion}/${name}/share "$out/share"
''
