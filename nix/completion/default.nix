# Completion for bash, zsh and fish, by program: PROGRAM/share/…, where the shells look for it. The options are those of the
# parsers, vLLM's among them; its build for the CPU is asked, whose parser is the same as the other's.
{ pkgs }:

let
  inherit (pkgs.gb10) cpu-env pythonPath wheels;
in
pkgs.runCommand "gb10-completion"
  {
    # vLLM's CPU platform asks lscpu for the cores.
    nativeBuildInputs = [ pkgs.util-linux ];
    # A script of a shell: nothing of what wrote it.
    allowedReferences = [ ];
    meta = import ../packages/meta.nix { inherit pkgs; } {
      description = "Completion of bash, zsh and fish for the programs of gb10";
      # shtab's templates are in the scripts.
      license = [
        pkgs.lib.licenses.asl20
        pkgs.lib.licenses.mpl20
      ];
    };
  }
  ''
    export HOME=$PWD VLLM_NO_USAGE_STATS=1
    PYTHONPATH=${pythonPath wheels.completion} PYTHONDONTWRITEBYTECODE=1 \
      ${cpu-env}/bin/python3 ${./gb10_completion.py} "$out"
  ''
