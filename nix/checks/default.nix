# What `nix flake check` builds: the tests and the linters. GPU tests are skipped here, with the reason printed.
{ pkgs }:

let
  inherit (pkgs) lib;
  inherit (pkgs.gb10)
    cpu-env
    cuda-toolkit
    cutlass
    demo-model
    heldout
    kernels
    kernels-software
    python
    quality-check
    serve
    test-env
    testbed
    vllm-fp4
    vllm-fp4-gemm
    vllm-fp4-software
    wheels
    ;

  # The files that a check reads, so that a change elsewhere (README, docs) does not run it again.
  sourceOf =
    names:
    builtins.path {
      name = "gb10-checked";
      path = ../..;
      filter =
        path: _:
        let
          relative = lib.removePrefix (toString ../.. + "/") path;
          top = builtins.head (lib.splitString "/" relative);
        in
        builtins.elem top names && baseNameOf path != "__pycache__";
    };

  testedFolders = [
    "flake.nix"
    "flake.lock"
    "nixw"
    "nix"
    "overlays"
    "patches"
    "python"
    "tests"
  ];
  testedSource = sourceOf testedFolders;
  wholeSource = sourceOf (
    testedFolders
    ++ [
      "bench"
      "kernels"
    ]
  );

  check =
    name: attrs: command:
    pkgs.runCommand "gb10-check-${name}"
      (
        {
          nativeBuildInputs = [
            test-env
            pkgs.util-linux
            # The curl line that serve prints is run as it stands.
            pkgs.curl
            # nvcc preprocesses with it; nixpkgs' runCommand has none.
            pkgs.stdenv.cc
          ];
        }
        // attrs
      )
      ''
        export HOME=$PWD XDG_CACHE_HOME=$PWD/cache PYTHONDONTWRITEBYTECODE=1
        ${command}
      '';

  pytest =
    name: folders: attrs:
    pytestIn testedSource name folders attrs;
  pytestIn =
    source: name: folders: attrs:
    check name attrs ''
      cp -r ${source} source
      chmod -R u+w source
      cd source
      mkdir -p "$out"
      python3 -m pytest -c python/pyproject.toml --rootdir . -p no:cacheprovider --durations=8 --timeout=900 --junitxml="$out/junit.xml" ${folders}
    '';

  # The trained model and the text that it is measured on.
  trained = {
    GB10_TESTBED = testbed;
    GB10_HELDOUT = "${heldout}/heldout.jsonl";
  };

  lint =
    name: command:
    check name { } ''
      cd ${wholeSource}
      ${command}
      touch "$out"
    '';
  # FlashInfer as the overlay builds it when it has a module: test_flashinfer.py loads it.
  flashinferWithProbe =
    (pkgs.gb10.wheelhouse.wheelsOf {
      profile = "cuda";
      changes.flashinfer-python.postInstall = pkgs.gb10.flashinferHook { gb10_probe = probe; };
    }).flashinfer-python;
  probe = check "flashinfer-probe" { } ''
    mkdir -p "$out"
    ffi=${wheels.cpu.apache-tvm-ffi}/${python.sitePackages}/tvm_ffi
    cc -shared -fPIC $(find "$ffi" -type d -name include -printf '-I%p ') -o "$out/gb10_probe.so" ${../../tests/patches/probe.c}
  '';
in
{
  unit =
    pytest "unit"
      "tests/unit tests/nix --ignore=tests/patches --ignore=tests/kernels --ignore=tests/lab/kernel_bench"
      trained;

  # The kernels without a GPU: host builds of their headers, their machine code, what the operators refuse. tests/gpu skips
  # here and says why.
  kernels = pytestIn wholeSource "kernels" "tests/kernels tests/lab/kernel_bench tests/gpu" {
    GB10_CUDA_TOOLKIT = cuda-toolkit;
    GB10_KERNELS = kernels;
    GB10_KERNELS_SOFTWARE = kernels-software;
    GB10_VLLM_FP4 = "${vllm-fp4}/lib";
    GB10_VLLM_FP4_OBJECTS = pkgs.runCommand "gb10-vllm-fp4-objects" { } ''
      mkdir -p "$out/hardware" "$out/software"
      ln -s ${vllm-fp4}/objects/* ${vllm-fp4}/lib/* ${vllm-fp4-gemm}/objects/* "$out/hardware/"
      ln -s ${vllm-fp4-software}/objects/* ${vllm-fp4-software}/lib/* "$out/software/"
    '';
  };

  # The patches' tests need what the CPU environment leaves out: Triton's interpreter, FlashInfer's build code, nvcc.
  patches = pytest "patches" "tests/patches" {
    GB10_CUDA_TOOLKIT = cuda-toolkit;
    GB10_CUTLASS_INCLUDE = "${cutlass}/${python.sitePackages}/cutlass_library/source/include";
    PYTHONPATH = builtins.concatStringsSep ":" (
      map (wheel: "${wheel}/${python.sitePackages}") [
        wheels.test.triton
        flashinferWithProbe
      ]
    );
  };

  e2e = pytest "e2e" "tests/e2e" (
    trained
    // {
      GB10_DEMO_MODEL = demo-model;
      GB10_SERVE_COMMAND = lib.getExe serve;
    }
  );

  # The quality figures of models/testbed/expectation.json.
  quality = quality-check;

  cpu-env-imports =
    pkgs.runCommand "gb10-check-cpu-env-imports" { nativeBuildInputs = [ pkgs.util-linux ]; }
      ''
        export HOME=$PWD
        ${cpu-env}/bin/python3 -c '
        import torch, vllm, vllm._C, gb10
        from vllm.platforms import current_platform
        assert current_platform.is_cpu(), current_platform
        assert (torch.__version__, vllm.__version__) == ("2.13.0+cpu", "0.32.0"), (torch.__version__, vllm.__version__)
        ' 2>&1 | tee "$out"
      '';

  ruff = lint "ruff" ''
    export RUFF_NO_CACHE=true
    ruff check --config python/pyproject.toml python/src tests nix bench
    ruff format --check --config python/pyproject.toml python/src tests nix bench
  '';

  mypy = lint "mypy" ''
    MYPYPATH=python/src mypy --config-file python/pyproject.toml --cache-dir "$HOME/mypy" --exclude tests/ python/src nix/wheelhouse nix/checks
  '';

  # Layout, not all of nixfmt, which the Debian base cannot have; `nix fmt` runs nixfmt where the base has it.
  nix-layout = lint "nix-layout" ''
    python3 nix/checks/lint/layout.py .
  '';

  dead-nix = lint "dead-nix" ''
    python3 nix/checks/lint/deadcode.py .
  '';

  contract =
    check "contract"
      {
        offered =
          builtins.toJSON
            (import ./lint/contract.nix {
              contract = ../CONTRACT.md;
              inherit pkgs;
            }).offered;
        passAsFile = [ "offered" ];
      }
      ''
        cd ${wholeSource}
        python3 nix/checks/lint/contract.py . --offered "$offeredPath"
        touch "$out"
      '';

  dead-python = lint "dead-python" ''
    vulture --config python/pyproject.toml python/src nix/checks nix/wheelhouse tests
  '';
}
