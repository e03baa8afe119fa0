# The project's own Python package, built by setuptools from python/src.
{ pkgs }:

let
  inherit (pkgs.gb10) python wheels;
in
pkgs.stdenv.mkDerivation {
  pname = "gb10";
  version = (builtins.fromTOML (builtins.readFile ../../python/pyproject.toml)).project.version;
  src = builtins.path {
    name = "gb10-source";
    path = ../../python;
    filter =
      path: _:
      let
        name = baseNameOf path;
      in
      !(builtins.elem name [
        "profiles.toml"
        "locks"
        "__pycache__"
      ]);
  };
  nativeBuildInputs = [
    python
    pkgs.unzip
  ];
  dontConfigure = true;
  buildPhase = ''
    PYTHONPATH=${wheels.cpu.setuptools}/${python.sitePackages} python3 -c \
      'from setuptools import build_meta; build_meta.build_wheel("dist")' >/dev/null
  '';
  installPhase = ''
    mkdir -p "$out/${python.sitePackages}"
    unzip -q dist/*.whl -d "$out/${python.sitePackages}"
    python3 -m compileall -q --invalidation-mode unchecked-hash "$out/${python.sitePackages}"
  '';
}
