# A wheel of the lock by its hash.
{ pkgs }:

{ wheel, pythonVersion }:

let
  inherit (pkgs) lib;
  pipDownload = import ./pip-download.nix { inherit pkgs; };

  # NAME-VERSION(-BUILD)?-PYTHON-ABI-PLATFORM.whl
  stem = lib.removeSuffix ".whl" wheel.file;
  parts = lib.splitString "-" stem;
  count = builtins.length parts;
  version = builtins.elemAt parts 1;
  abi = builtins.elemAt parts (count - 2);
  platforms = lib.splitString "." (builtins.elemAt parts (count - 1));
in
if wheel.index == "pytorch-cpu" then
  # CPU builds of torch are on PyTorch's own index alone.
  pkgs.fetchurl {
    name = wheel.file;
    url = "https://download.pytorch.org/whl/cpu/${
      builtins.replaceStrings [ "+" ] [ "%2B" ] wheel.file
    }";
    inherit (wheel) sha256;
  }
else
  pipDownload {
    inherit (wheel) file sha256;
    requirement = "${wheel.name}==${version}";
    pipArguments = [
      "--only-binary :all:"
      "--implementation cp"
      "--python-version ${pythonVersion}"
      "--abi ${abi}"
    ]
    ++ map (platform: "--platform ${platform}") platforms;
  }
