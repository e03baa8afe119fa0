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
  serve = app pkgs.gb10.serve "Serve an NVFP4 model with an OpenAI-compatible API";
  serve-cuda = app pkgs.gb10.serve-cuda "Serve an NVFP4 model on NVIDIA GPUs (with NVIDIA's libraries, which are not free)";
  serve-cuda-12x = app pkgs.gb10.serve-cuda-12x "As serve-cuda, with FlashInfer's modules for GPUs of 12.x";
  speculative = app pkgs.gb10.speculative "Measure how many MTP drafts are accepted, and that the output stays the same";
}
