# A check of one room: its tests typed, formatted and run, over the files that it names and no others.
{ pkgs }:

{
  name,
  # Test files and folders, in the repository.
  tests,
  # What they read beside themselves.
  sources ? [ ],
  variables ? { },
  arguments ? "",
  # Another room's tests may be these files' too: one of them looks at their form and types.
  lint ? true,
  # Folders of CUDA that clang-format looks at.
  cuda ? [ ],
}:

let
  types = import ./types.nix { inherit pkgs; };
  root = toString ../..;
  relative = path: pkgs.lib.removePrefix "${root}/" (toString path);
  toWords = paths: builtins.concatStringsSep " " (map relative paths);
  words = toWords tests;
  source = pkgs.lib.fileset.toSource {
    root = ../..;
    fileset = pkgs.lib.fileset.unions (
      [
        ../../python/pyproject.toml
        ../../tests/conftest.py
      ]
      ++ tests
      ++ sources
      ++ cuda
      ++ pkgs.lib.optionals (cuda != [ ]) [ ../../.clang-format ]
    );
  };
in
pkgs.runCommand "gb10-check-${name}"
  (
    {
      nativeBuildInputs = [
        pkgs.gb10.test-env
        pkgs.util-linux
        # The curl line that serve prints is run as it stands.
        pkgs.curl
        # nvcc preprocesses with it; nixpkgs' runCommand has none.
        pkgs.stdenv.cc
      ];
      passthru = { inherit source; };
      meta = import ../packages/meta.nix { inherit pkgs; } {
        description = "Report of the tests of ${name}";
      };
    }
    // variables
  )
  ''
    # Checks run side by side: a thread that waits for another one lets it have the processor at once.
    export GOMP_SPINCOUNT=0
    export HOME=$PWD XDG_CACHE_HOME=$PWD/cache PYTHONDONTWRITEBYTECODE=1 RUFF_NO_CACHE=true
    cp -r ${source} source
    chmod -R u+w source
    cd source
    mkdir -p "$out"
    export PYTHONPATH="$PWD/python/src:$PWD/lab/src''${PYTHONPATH:+:$PYTHONPATH}"
    ${
      if lint then
        ''
          ruff check --config python/pyproject.toml ${words}
          ruff format --check --config python/pyproject.toml ${words}
          cp -r ${types} "$HOME/mypy" && chmod -R u+w "$HOME/mypy"
          MYPYPATH=python/src:lab/src:nix/wheelhouse/lock:tests:tests/lab mypy --config-file python/pyproject.toml --cache-dir "$HOME/mypy" ${words}
        ''
      else
        ""
    }
    ${
      if cuda == [ ] then
        ""
      else
        "find ${toWords cuda} -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.cpp' | xargs clang-format --style=file --dry-run --Werror"
    }
    python3 -m pytest -c python/pyproject.toml --rootdir . -p no:cacheprovider --durations=8 --timeout=900 \
      --junitxml="$out/junit.xml" ${arguments} ${words}
  ''
