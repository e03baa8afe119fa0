# What `nix run .#NAME` runs.
{ pkgs }:

let
  app = package: description: {
    type = "app";
    program = pkgs.lib.getExe package;
    meta = { inherit description; };
  };
in
{
  lock = app pkgs.gb10.lock "Write python/locks/ from python/profiles.toml";
  quality = app pkgs.gb10.quality "Measure what NVFP4, FP8 and 2:4 cost the testbed model in quality";
  rebuild = app pkgs.gb10.rebuild "Build every derivation of this flake once more and compare";
  serve = app pkgs.gb10.serve "Serve an NVFP4 model with an OpenAI-compatible API";
  speculative = app pkgs.gb10.speculative "Measure how many MTP drafts are accepted, and that the output stays the same";
}
