# The CUDA sources of vLLM, from its source distribution, with the patches that the wheels get and those of the sources alone.
{ pkgs }:

let
  version = "0.32.0";
  pipDownload = import ../wheelhouse/pip-download.nix { inherit pkgs; };

  # pip asks a source distribution's own build system for its name before it keeps the file, and vLLM's wants torch and
  # a compiler for that answer. This one only answers. Can go when pip can download without asking.
  answer = pkgs.runCommand "vllm-name-and-version" { inherit version; } ''
    mkdir -p "$out/setuptools"
    touch "$out/setuptools/__init__.py"
    cat >"$out/setuptools/build_meta.py" <<END
    import pathlib

    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        folder = pathlib.Path(directory, "vllm-$version.dist-info")
        folder.mkdir()
        folder.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: $version\n")
        return folder.name
    END
  '';
in
pkgs.stdenv.mkDerivation {
  pname = "vllm-cuda-sources";
  inherit version;
  src = pipDownload {
    file = "vllm-${version}.tar.gz";
    sha256 = "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad";
    requirement = "vllm==${version}";
    pipArguments = [
      "--no-binary :all:"
      "--no-build-isolation"
    ];
    environment.PYTHONPATH = answer;
  };
  patches = import ../patches.nix ../../patches/vllm/csrc;
  dontConfigure = true;
  dontBuild = true;
  dontFixup = true;
  installPhase = ''
    mkdir -p "$out"
    cp -r csrc "$out/"
  '';
  meta = import ./meta.nix { inherit pkgs; } { description = "CUDA sources of vLLM, patched"; };
}
