# A library of kernels -> lib/libgb10_NAME.so (kernels/Makefile), for one route (kernels/include/gb10/arch.cuh).
{ pkgs }:

{
  # kernels or sparse24
  name,
  # The folders of its kernels.
  folders,
  route,
  description,
}:

let
  inherit (pkgs.gb10) cuda-toolkit python wheels;
  inherit (pkgs.lib.fileset) toSource unions;
in
pkgs.stdenv.mkDerivation {
  pname = "gb10-${name}-${route}";
  version = (builtins.fromTOML (builtins.readFile ../../python/pyproject.toml)).project.version;
  src = toSource {
    root = ../../kernels;
    fileset = unions (
      [
        ../../kernels/Makefile
        ../../kernels/include
      ]
      ++ folders
    );
  };
  dontConfigure = true;
  # Only torch's headers and its libraries' names are used, and those are the same for CPU and CUDA.
  buildPhase = ''
    make -j"$NIX_BUILD_CORES" OUT="$PWD/build" ROUTE=${route} \
      CUDA=${cuda-toolkit} TORCH=${wheels.cpu.torch}/${python.sitePackages}/torch ${name}
  '';
  # No run path: it would put torch for CPU beside torch for CUDA. The library takes the torch that loads it, and names no other.
  installPhase = ''
    install -D build/libgb10_${name}.so "$out/lib/libgb10_${name}.so"
    patchelf --remove-rpath "$out/lib/libgb10_${name}.so"
  '';
  disallowedReferences = [ wheels.cpu.torch ];
  nativeBuildInputs = [ pkgs.patchelf ];
  meta = import ./meta.nix { inherit pkgs; } { inherit description; };
}
