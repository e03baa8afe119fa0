# Which names of nix/CONTRACT.md the base `pkgs` has: the answer that contract.py takes with --offered.
# Only attribute sets on the way to a name are evaluated, so nothing is built and no package is looked at.
{
  contract,
  pkgs,
}:

let
  lines = builtins.filter builtins.isString (builtins.split "\n" (builtins.readFile contract));
  rows = builtins.filter builtins.isList (
    map (builtins.match "[|] *`([^`]+)` *[|] *([^ ].*)[|] *") lines
  );
  required = builtins.filter (
    row: builtins.match "[oO]ptional.*" (builtins.elemAt row 1) == null
  ) rows;
  parts =
    row:
    builtins.filter (part: builtins.isString part && part != "*") (
      builtins.split "[.]" (builtins.head row)
    );

  has =
    set: path:
    path == [ ]
    || (
      builtins.isAttrs set
      && set ? ${builtins.head path}
      && has set.${builtins.head path} (builtins.tail path)
    );
  names = map parts required;
  spell = builtins.concatStringsSep ".";
in
{
  offered = map spell (builtins.filter (has pkgs) names);
  missing = map spell (builtins.filter (path: !has pkgs path) names);
}
