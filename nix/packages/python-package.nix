# A Python package of this repository as site-packages, built by setuptools from its pyproject.toml.
{ pkgs }:

{
  pname,
  src,
  # Its pyproject.toml, beside `src`: a source in the store cannot be read by an evaluation that writes nothing.
  pyproject,
  description,
  # Without: a part of the package, whose command would lack what it calls.
  commands ? true,
}:

let
  inherit (pkgs.gb10) python wheels;
in
pkgs.stdenv.mkDerivation {
  inherit pname src;
  version = (builtins.fromTOML (builtins.readFile pyproject)).project.version;
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
    site=$out/${python.sitePackages}
    mkdir -p "$site"
    unzip -q dist/*.whl -d "$site"
    ${if commands then "" else "sed -i '/^\\[console_scripts\\]/,/^$/d' \"$site\"/*.dist-info/entry_points.txt"}
    python3 -m compileall -q --invalidation-mode unchecked-hash "$site"
  '';
  meta = import ./meta.nix { inherit pkgs; } { inherit description; };
}
