# vLLM's NVFP4 quantisation operators as one small library, for one route; `gemm`: its block-scaled GEMM units, objects only.
{ pkgs }:

let
  inherit (pkgs.gb10)
    cuda-toolkit
    cutlass
    python
    vllm-source
    wheels
    ;
  build =
    {
      name,
      route,
      target,
      install,
    }:
    pkgs.stdenv.mkDerivation {
      inherit name;
      src = pkgs.lib.fileset.toSource {
        root = ../..;
        fileset = pkgs.lib.fileset.unions [
          ../../kernels/include
          ../../vllm_fp4
        ];
      };
      nativeBuildInputs = [ pkgs.patchelf ];
      meta = import ./meta.nix { inherit pkgs; } {
        description = "vLLM's NVFP4 operators, built from its sources (${target}, E2M1 in ${route})";
        # vLLM's and CUTLASS's.
        license = [
          pkgs.lib.licenses.asl20
          pkgs.lib.licenses.bsd3
        ];
      };
      dontConfigure = true;
      buildPhase = ''
        make -j"$NIX_BUILD_CORES" -f vllm_fp4/build.mk OUT="$PWD/build" ROUTE=${route} \
          CUDA=${cuda-toolkit} TORCH=${wheels.cpu.torch}/${python.sitePackages}/torch VLLM=${vllm-source} \
          INCLUDE="$PWD/kernels/include" \
          CUTLASS=${cutlass}/${python.sitePackages}/cutlass_library/source/include ${target}
      '';
      installPhase = install;
    };
  library =
    route:
    build {
      name = "gb10-vllm-fp4-${route}";
      inherit route;
      target = "library";
      # The objects stay beside the library: the checks look at each unit's machine code.
      install = ''
        install -D build/libgb10_vllm_fp4.so "$out/lib/libgb10_vllm_fp4.so"
        patchelf --remove-rpath "$out/lib/libgb10_vllm_fp4.so"
        mkdir "$out/objects"
        cp build/*.cu.o "$out/objects/"
      '';
    };
in
{
  hardware = library "hardware";
  software = library "software";
  gemm = build {
    name = "gb10-vllm-fp4-gemm";
    route = "hardware";
    target = "gemm";
    install = ''
      mkdir -p "$out/objects"
      cp build/*.cu.o "$out/objects/"
    '';
  };
}
