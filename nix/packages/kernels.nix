# The CUDA kernels -> lib/libgb10_kernels.so, for one route (kernels/include/gb10/arch.cuh).
{ pkgs }:

{ route }:

let
  inherit (pkgs.gb10) cuda-toolkit python wheels;
  inherit (pkgs.lib.fileset) toSource unions;
in
pkgs.stdenv.mkDerivation {
  pname = "gb10-kernels-${route}";
  version = (builtins.fromTOML (builtins.readFile ../../python/pyproject.toml)).project.version;
  src = toSource {
    root = ../../kernels;
    fileset = unions [
      ../../kernels/Makefile
      ../../kernels/include
      ../../kernels/bandwidth
      ../../kernels/fp8_gemv
      ../../kernels/moe_decode
      ../../kernels/nvfp4_gemv
      ../../kernels/quantize
      ../../kernels/sparse24
    ];
  };
  dontConfigure = true;
  # Only torch's headers and its libraries' names are used, and those are the same for CPU and CUDA.
  buildPhase = ''
    make -j"$NIX_BUILD_CORES" OUT="$PWD/build" ROUTE=${route} \
      CUDA=${cuda-toolkit} TORCH=${wheels.cpu.torch}/${python.sitePackages}/torch
  '';
  # No run path: it would put torch for CPU beside torch for CUDA. The library takes the torch that loads it.
  installPhase = ''
    install -D build/libgb10_kernels.so "$out/lib/libgb10_kernels.so"
    patchelf --remove-rpath "$out/lib/libgb10_kernels.so"
  '';
  nativeBuildInputs = [ pkgs.patchelf ];
}
