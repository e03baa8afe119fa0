# A file of a package index by its hash. pip fetches it, as pip is set up on this machine; the hash decides what it is.
{ pkgs }:

{
  file,
  sha256,
  # NAME==VERSION
  requirement,
  pipArguments,
  # Environment for pip beside its settings.
  environment ? { },
}:

pkgs.stdenv.mkDerivation (
  environment
  // {
    name = file;
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = sha256;
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
    requirement = "${requirement} --hash=sha256:${sha256}";
    pipArguments = toString pipArguments;
    installPhase = ''
      for bundle in /etc/ssl/certs/ca-certificates.crt "''${NIX_SSL_CERT_FILE:-}"; do
        if [ -s "$bundle" ]; then export PIP_CERT=$bundle; break; fi
      done
      # The hash alone decides. A site's constraints have no say, and the file that its pip.conf names is not in the sandbox.
      # nixw shows the user's pip settings there.
      export HOME=/etc/pip-home PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/dev/null
      echo "$requirement" >requirement.txt
      pip download --quiet --no-deps --ignore-requires-python --require-hashes $pipArguments --dest fetched -r requirement.txt
      mv fetched/* "$out"
    '';
  }
)
