# A wheel by its hash. pip fetches it, as pip is set up on this machine; the hash decides what it is.
{ pkgs }:

{ wheel, python }:

let
  inherit (pkgs) lib;

  # NAME-VERSION(-BUILD)?-PYTHON-ABI-PLATFORM.whl
  stem = lib.removeSuffix ".whl" wheel.file;
  parts = lib.splitString "-" stem;
  count = builtins.length parts;
  version = builtins.elemAt parts 1;
  abi = builtins.elemAt parts (count - 2);
  platforms = lib.splitString "." (builtins.elemAt parts (count - 1));
in
if wheel.index or null == "pytorch-cpu" then
  # CPU builds of torch are on PyTorch's own index alone.
  pkgs.fetchurl {
    name = wheel.file;
    url = "https://download.pytorch.org/whl/cpu/${
      builtins.replaceStrings [ "+" ] [ "%2B" ] wheel.file
    }";
    inherit (wheel) sha256;
  }
else
  pkgs.stdenv.mkDerivation {
    name = wheel.file;
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = wheel.sha256;
    nativeBuildInputs = [ pkgs.python3Packages.pip ];
    # The whole build is this command; nothing of it reaches the output but the file.
    dontUnpack = true;
    dontFixup = true;
    impureEnvVars = [
      "http_proxy"
      "https_proxy"
      "no_proxy"
      "all_proxy"
      "HTTP_PROXY"
      "HTTPS_PROXY"
      "NO_PROXY"
      "ALL_PROXY"
      "NIX_SSL_CERT_FILE"
      "PIP_INDEX_URL"
      "PIP_EXTRA_INDEX_URL"
      "PIP_FIND_LINKS"
      "PIP_TRUSTED_HOST"
      "PIP_PROXY"
      "PIP_DEFAULT_TIMEOUT"
    ];
    requirement = "${wheel.name}==${version} --hash=sha256:${wheel.sha256}";
    pipArguments = toString (
      [
        "--implementation cp"
        "--python-version ${python.pythonVersion}"
        "--abi ${abi}"
      ]
      ++ map (platform: "--platform ${platform}") platforms
    );
    installPhase = ''
      for bundle in /etc/ssl/certs/ca-certificates.crt "''${NIX_SSL_CERT_FILE:-}"; do
        if [ -s "$bundle" ]; then export PIP_CERT=$bundle; break; fi
      done
      export HOME=$PWD PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
      echo "$requirement" >requirement.txt
      pip download --quiet --no-deps --ignore-requires-python --only-binary :all: --require-hashes $pipArguments --dest fetched -r requirement.txt
      mv fetched/*.whl "$out"
    '';
  }
