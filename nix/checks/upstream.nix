# tests/upstream: vLLM's own CPU tests, on the vLLM that the patches of this repository make.
{ pkgs, room, ... }:

{
  upstream = room {
    name = "upstream";
    tests = [ ../../tests/upstream ];
    variables.GB10_VLLM_TESTS = pkgs.gb10.vllm-tests;
  };
}
