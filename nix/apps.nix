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
  lock = app pkgs.gb10.lock "Write python/wheels.lock.json from python/profiles.toml";
  serve = app pkgs.gb10.serve "Serve an NVFP4 model with an OpenAI-compatible API";
}
