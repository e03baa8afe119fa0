# What builds: nixw and the lock, and that a derivation reads what it should and nothing else.
{ pkgs, room, ... }:

let
  inherit (pkgs.gb10) demo-model package;
in
{
  nixw = room {
    name = "nixw";
    tests = [ ../../tests/nix/nixw ];
    sources = [
      ../../nixw
      ../../flake.lock
      ../../nix/debian
      ../../python/locks
    ];
  };

  lock = room {
    name = "lock";
    tests = [ ../../tests/nix/lock ];
    sources = [
      ../../nix/wheelhouse
      ../../python/locks
      ../../python/profiles.toml
    ];
  };

  flashinfer-build = room {
    name = "flashinfer-build";
    tests = [ ../../tests/nix/flashinfer ];
    sources = [ ../../nix/flashinfer ];
  };

  # The rebuild with a Nix that answers as it is told, and what .ci/run makes of Nix's answers.
  rebuild = room {
    name = "rebuild";
    tests = [ ../../tests/nix/rebuild ];
    sources = [
      ../../.ci
      ../../nix/apps/rebuild
    ];
  };

  cpu-env-imports =
    pkgs.runCommand "gb10-check-cpu-env-imports" { nativeBuildInputs = [ pkgs.util-linux ]; }
      ''
        export HOME=$PWD
        ${pkgs.gb10.cpu-env}/bin/python3 -c '
        import torch, vllm, vllm._C, gb10
        from vllm.platforms import current_platform
        assert current_platform.is_cpu(), current_platform
        assert (torch.__version__, vllm.__version__) == ("2.13.0+cpu", "0.32.0"), (torch.__version__, vllm.__version__)
        ' 2>&1 | tee "$out"
        # Its commands run nothing out of PYTHONPATH or the current folder; its python3 is the user's own.
        mkdir hostile && cd hostile
        echo 'open("mark", "w").close()' | tee sitecustomize.py > json.py
        PYTHONPATH=$PWD ${pkgs.gb10.cpu-env}/bin/gb10 --version
        [ ! -e mark ]
        PYTHONPATH=$PWD ${pkgs.gb10.cpu-env}/bin/python3 -c ""
        [ -e mark ]
      '';

  # Two rows of tests/nix/derivations, which compares derivations before and after a comment in a file: one in
  # serve/settings.py makes another `serve` and the same demo model; one in the lab's training makes neither anew.
  source-sets = pkgs.runCommand "gb10-check-source-sets" { } ''
    serve=${package.src} demo=${demo-model.source}
    [ -e "$serve/src/gb10/serve/settings.py" ]
    [ -e "$demo/lab/src/gb10_lab/testbed/quantize.py" ]
    for file in python/src/gb10/serve lab/src/gb10_lab/training; do
      [ ! -e "$demo/$file" ] || { echo "the demo model reads $file" && exit 1; }
    done
    [ ! -e "$serve/lab" ]
    touch "$out"
  '';
}
