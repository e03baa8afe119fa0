# What builds: nixw and the lock, and that a derivation reads what it should and nothing else.
{
  pkgs,
  room,
  sets,
  ...
}:

let
  inherit (pkgs.gb10) cpu-env demo-model package;

  # An environment whose python3 says what a program is started with; our own modules, but no server, run for real.
  saying = pkgs.runCommand "gb10-saying" { } ''
    mkdir -p "$out/bin"
    cat >"$out/bin/python3" <<'SAYING'
    #!${pkgs.bash}/bin/bash
    if [[ "$*" == *gb10.machine.* ]]; then exec ${cpu-env}/bin/python3 "$@"; fi
    printf 'argument %s\n' "$@"
    export -p
    SAYING
    chmod +x "$out/bin/python3"
  '';
  serving =
    (import ../apps/serve.nix {
      pkgs = pkgs // {
        gb10 = pkgs.gb10 // {
          cuda-env = saying;
          kernels = "/kernels";
          demo-model = "/demo-model";
        };
      };
    }).serve-cuda;
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

  completion = room {
    name = "completion";
    tests = [
      ../../nix/completion/gb10_completion.py
      ../../tests/nix/completion
    ];
    sources =
      sets.serve
      ++ sets.gb10 [
        "bench"
        "predict"
      ];
    variables = {
      PYTHONPATH = pkgs.gb10.pythonPath pkgs.gb10.wheels.completion;
      # A build's own bash may be one that completes nothing.
      GB10_BASH = "${pkgs.bashInteractive}/bin/bash";
    };
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

  shells = room {
    name = "shells";
    tests = [ ../../tests/nix/shells ];
    sources = [
      ../../.envrc
      ../../nix/shell-hook.sh
    ];
  };

  image = room {
    name = "image";
    tests = [
      ../../nix/debian/docker
      ../../nix/image/entry.py
      ../../tests/nix/image
    ];
    variables.GB10_IMAGE_CONF = pkgs.gb10.image-cpu.conf;
  };

  # The units' text, what is said of wrong values (the module too, where lib evaluates modules), the process that they start,
  # and the installer, into a folder.
  service = room {
    name = "service";
    tests = [
      ../../nix/apps/install-service
      ../../nix/modules/supervisor
      ../../tests/nix/service
    ];
    sources = [
      ../../docs/service.md
      ../../nix/modules
    ]
    ++ sets.serve;
    variables.GB10_SERVICE_CASES = pkgs.writeText "gb10-service-cases.json" (
      builtins.toJSON (import ../../tests/nix/service/cases.nix { inherit (pkgs) lib; })
    );
  };

  # The bills of materials: the CPU image's is built, and spoiled in each way that it must not be.
  sbom = room {
    name = "sbom";
    tests = [
      ../../nix/debian/closure_info.py
      ../../nix/image/bom
      ../../tests/nix/sbom
    ];
    sources = [
      ../../nix/debian/docker/stream.py
      ../../nix/debian/packages.lock
      ../../nix/image/advisories.toml
      ../../nix/image/debian-files.json
      ../../nix/image/debian-licences.toml
      ../../nix/image/vendored.toml
      ../../patches
      ../../python/licences.toml
      ../../python/src
    ];
    variables = {
      GB10_SBOM = pkgs.gb10.sbom-cpu;
      GB10_SBOM_PLAN = pkgs.gb10.sbom-cpu.plan;
      PYTHONPATH = pkgs.gb10.pythonPath pkgs.gb10.wheels.sbom;
    };
  };

  flashinfer-build = room {
    name = "flashinfer-build";
    tests = [ ../../tests/nix/flashinfer ];
    sources = [ ../../nix/flashinfer ];
    variables.GB10_CUDA_TOOLKIT = pkgs.gb10.cuda-toolkit;
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

  # What the emulated kernels are compared with, and how.
  emulated-steps = room {
    name = "emulated-steps";
    tests = [ ../../tests/nix/emulated ];
    sources = [ ../../nix/emulated/steps.py ];
    variables = {
      GB10_CUDA_TOOLKIT = pkgs.gb10.cuda-toolkit;
    };
  };

  cpu-env-imports =
    pkgs.runCommand "gb10-check-cpu-env-imports" { nativeBuildInputs = [ pkgs.util-linux ]; }
      ''
        export HOME=$PWD
        ${pkgs.gb10.cpu-env}/bin/python3 -c '
        import torch, vllm, gb10
        from vllm.platforms import current_platform
        assert current_platform.is_cpu(), current_platform
        # The library for this processor: without it there are no operators.
        current_platform.import_kernels()
        torch.ops._C.greedy_argmax
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

  # `serve` needs no derivation, so no Nix, at run time, nor does `serve-cuda`. The control needs one.
  serve-closure =
    pkgs.runCommand "gb10-check-serve-closure"
      {
        exportReferencesGraph = [
          "serve"
          pkgs.gb10.serve
          "serve-cuda"
          serving
          "control"
          (pkgs.writeText "control" (builtins.unsafeDiscardOutputDependency package.drvPath))
        ];
      }
      ''
        for graph in serve serve-cuda; do grep -qE '^/nix/store/.*-gb10-cpu-env$' "$graph"; done
        grep '\.drv$' control >/dev/null
        if grep '\.drv$' serve serve-cuda; then exit 1; fi
        touch "$out"
      '';

  # What `serve-cuda` does before its server, on a machine without a driver and on one that has it in a folder of its own.
  serve-cuda-starts = pkgs.runCommand "gb10-check-serve-cuda-starts" { } ''
    start() { env -i HOME="$PWD/home" PATH="$PWD/hostile:$PATH" "$@" ${serving}/bin/serve-cuda a 'b c' >said 2>error; }
    mkdir home hostile driver
    for tool in bash chmod dirname env id ln mkdir mktemp python3 readlink uname; do
      printf '#!${pkgs.bash}/bin/bash\n: >"%s"\n' "$PWD/ran-$tool" >"hostile/$tool"
      chmod +x "hostile/$tool"
    done

    status=0
    start || status=$?
    [ "$status" = 2 ]
    [ ! -s said ]
    [ "$(wc -l <error)" = 1 ]
    grep '^gb10: error: no libcuda.so.1 found; ' error
    [ -z "$(ls -A home)" ]

    touch driver/libcuda.so.580.1 driver/libnvidia-ml.so.580.1 driver/libz.so.1.2
    ln -s libcuda.so.580.1 driver/libcuda.so.1
    start LD_LIBRARY_PATH="/none:$PWD/driver" PYTHONPATH="$PWD"
    cat said error
    links=$(echo home/.cache/gb10/driver/*)
    [ "$(ls "$links" | tr '\n' ' ')" = "libcuda.so.1 libcuda.so.580.1 libnvidia-ml.so.580.1 " ]
    [ ! -s error ]
    [ "$(grep '^argument ' said | tr '\n' ' ')" = "argument -I argument -m argument gb10 argument serve argument a argument b c " ]
    for variable in "LD_LIBRARY_PATH=\"$PWD/$links:${pkgs.rdma-core}/lib\"" "RDMAV_DRIVERS=\"${pkgs.rdma-core}/lib/libibverbs/libmlx5\"" \
      "TRITON_LIBCUDA_PATH=\"$PWD/$links\"" 'GB10_KERNELS="/kernels"' \
      'FLASHINFER_DISABLE_JIT="1"' 'PYTHONSAFEPATH="1"'; do
      grep -xF "declare -x $variable" said
    done
    if grep -E 'PYTHONPATH|GB10_PROFILE|GB10_DEMO_MODEL' said; then exit 1; fi
    if ls ran-*; then exit 1; fi
    # The control: one of the caller's tools is there to be run.
    PATH="$PWD/hostile:$PATH" mkdir x
    ls ran-mkdir
    touch "$out"
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
