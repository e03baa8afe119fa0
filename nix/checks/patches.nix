# tests/patches needs what the CPU environment leaves out: Triton's interpreter, FlashInfer's build code, nvcc.
{
  pkgs,
  room,
  sets,
}:

let
  inherit (pkgs.gb10)
    cuda-toolkit
    cutlass
    python
    pythonPath
    wheels
    ;

  # FlashInfer as the overlay builds it when it has a module: test_flashinfer.py loads it.
  flashinferWithProbe =
    (pkgs.gb10.wheelhouse.wheelsOf {
      profile = "cuda";
      changes.flashinfer-python.postInstall = pkgs.gb10.flashinferHook { gb10_probe = probe; };
    }).flashinfer-python;
  probe = pkgs.runCommand "flashinfer-probe" { nativeBuildInputs = [ pkgs.stdenv.cc ]; } ''
    mkdir -p "$out"
    ffi=${wheels.cpu.apache-tvm-ffi}/${python.sitePackages}/tvm_ffi
    cc -shared -fPIC $(find "$ffi" -type d -name include -printf '-I%p ') -o "$out/gb10_probe.so" ${../../tests/patches/probe.c}
  '';

  # Every file below a folder, by its path in the repository: what a patch's header may name as its test.
  namesBelow =
    prefix: folder:
    builtins.concatLists (
      builtins.attrValues (
        builtins.mapAttrs (
          name: kind:
          if kind == "directory" then
            namesBelow "${prefix}/${name}" (folder + "/${name}")
          else
            [ "${prefix}/${name}" ]
        ) (builtins.readDir folder)
      )
    );
in
{
  patches = room {
    name = "patches";
    tests = [ ../../tests/patches ];
    sources = sets.plugin ++ [
      ../../patches
      ../../tests/reference
    ];
    variables = {
      GB10_CUDA_TOOLKIT = cuda-toolkit;
      GB10_CUTLASS_INCLUDE = "${cutlass}/${python.sitePackages}/cutlass_library/source/include";
      GB10_TEST_FILES = builtins.concatStringsSep " " (namesBelow "tests" ../../tests);
      PYTHONPATH = pythonPath {
        inherit (wheels.test) triton;
        inherit flashinferWithProbe;
      };
    };
  };
}
