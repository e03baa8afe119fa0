# What every package of this repository says of itself, beside its description and what `more` has in place of the rest.
{ pkgs }:

{ description, ... }@more:

{
  license = pkgs.lib.licenses.asl20;
  sourceProvenance = [ pkgs.lib.sourceTypes.fromSource ];
  # python/locks/ has wheels for these.
  platforms = [
    "x86_64-linux"
    "aarch64-linux"
  ];
}
// more
