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

  # A module as the package of FlashInfer's modules holds them, without device code: test_flashinfer.py loads it.
  probe = pkgs.runCommand "flashinfer-probe" { nativeBuildInputs = [ pkgs.stdenv.cc ]; } ''
    mkdir -p "$out/gb10_probe"
    ffi=${wheels.cpu.apache-tvm-ffi}/${python.sitePackages}/tvm_ffi
    cc -shared -fPIC $(find "$ffi" -type d -name include -printf '-I%p ') -o "$out/gb10_probe/gb10_probe.so" ${../../tests/patches/probe.c}
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
  # The guard in CUDA's headers: what it compiles reads nothing of ours.
  cccl = room {
    name = "cccl";
    tests = [ ../../tests/patches/test_cccl_guard.py ];
    variables = {
      GB10_CUDA_TOOLKIT = cuda-toolkit;
      GB10_CUTLASS_INCLUDE = "${cutlass}/${python.sitePackages}/cutlass_library/source/include";
    };
  };

  patches = room {
    name = "patches";
    tests = [ ../../tests/patches ];
    arguments = "--ignore tests/patches/test_cccl_guard.py";
    sources =
      sets.plugin
      ++ sets.gb10 [ "machine" ]
      ++ [
        ../../nix/flashinfer
        ../../patches
        ../../tests/reference
      ];
    variables = {
      GB10_TEST_FILES = builtins.concatStringsSep " " (namesBelow "tests" ../../tests);
      PYTHONPATH = pythonPath {
        inherit (wheels.test) triton;
        inherit (wheels.cuda) flashinfer-python;
        modules = pkgs.gb10.flashinfer.package [ probe ];
      };
    };
  };
}
