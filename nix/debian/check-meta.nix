# What nixpkgs refuses to evaluate by `meta`: what is not free and not allowed by the user, and what is not for the system.
# Null, or an error. The same settings count: allowUnfree, allowUnfreePredicate, NIXPKGS_ALLOW_UNFREE.
{ config, system }:

let
  inherit (builtins) any elem getEnv isList;
in
package:

let
  meta = package.meta or { };
  licences =
    if isList (meta.license or [ ]) then meta.license or [ ] else [ meta.license ];
  allowed =
    config.allowUnfree or false
    || getEnv "NIXPKGS_ALLOW_UNFREE" == "1"
    || (config.allowUnfreePredicate or (_: false)) package;
in
if any (licence: !(licence.free or true)) licences && !allowed then
  throw "${package.name} has an unfree license; allow it by name with config.allowUnfreePredicate (docs/nix.md), or set NIXPKGS_ALLOW_UNFREE=1 and pass --impure"
else if !elem system (meta.platforms or [ system ]) then
  throw "${package.name} is not for ${system}"
else
  null
