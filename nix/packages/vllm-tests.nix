# The tests of vLLM's source distribution: tests/upstream runs some of them on this repository's vLLM.
{ pkgs }:

pkgs.runCommand "vllm-upstream-tests" { } ''
  mkdir -p "$out"
  tar -xzf ${pkgs.gb10.vllm-source.src} -C "$out" --strip-components=1 --wildcards 'vllm-*/tests/*'
''
