# kernels/ -> lib/libgb10_LIBRARY.so, kernels or sparse24 (kernels/Makefile), for one route (kernels/include/gb10/arch.cuh).
{ pkgs }:

{
  route,
  library ? "kernels",
}:

let
  inherit (pkgs.gb10) cuda-toolkit python wheels;
in
pkgs.stdenv.mkDerivation {
  pname = "gb10-${library}-${route}";
  version = (builtins.fromTOML (builtins.readFile ../../python/pyproject.toml)).project.version;
  src = builtins.path {
    name = "gb10-kernels-source";
    path = ../../kernels;
  };
  dontConfigure = true;
  # Only torch's headers and its libraries' names are used, and those are the same for CPU and CUDA.
  buildPhase = ''
    make -j"$NIX_BUILD_CORES" OUT="$PWD/build" ROUTE=${route} \
      CUDA=${cuda-toolkit} TORCH=${wheels.cpu.torch}/${python.sitePackages}/torch ${library}
  '';
  # No run path: it would put torch for CPU beside torch for CUDA. The library takes the torch that loads it.
  installPhase = ''
    install -D build/libgb10_${library}.so "$out/lib/libgb10_${library}.so"
    patchelf --remove-rpath "$out/lib/libgb10_${library}.so"
  '';
  nativeBuildInputs = [ pkgs.patchelf ];
}
