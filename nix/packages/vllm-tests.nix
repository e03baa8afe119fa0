# The tests of vLLM's source distribution: tests/upstream runs some of them on this repository's vLLM.
{ pkgs }:

pkgs.runCommand "vllm-upstream-tests"
  {
    meta = import ./meta.nix { inherit pkgs; } {
      description = "Tests of vLLM's source distribution";
    };
  }
  ''
    mkdir -p "$out"
    tar -xzf ${pkgs.gb10.vllm-source.src} -C "$out" --strip-components=1 --wildcards 'vllm-*/tests/*'
  ''
