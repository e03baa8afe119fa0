# The trained model in BF16 and its records, without the model card, whose words change nothing.
{ pkgs }:

let
  folder = ../../models/testbed;
  files = builtins.filter (name: name != "README.md") (builtins.attrNames (builtins.readDir folder));
in
pkgs.lib.fileset.toSource {
  root = folder;
  fileset = pkgs.lib.fileset.unions (map (name: folder + "/${name}") files);
}
