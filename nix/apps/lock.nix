# `nix run .#lock`: writes python/locks/ of the checkout that it is called in; with `debian`, nix/debian/packages.lock.
{ pkgs }:

let
  environment = pkgs.gb10.environment {
    name = "gb10-lock-env";
    description = "uv and what the lock tool imports";
    wheels = pkgs.gb10.wheels.lock;
  };
in
pkgs.writeShellApplication {
  name = "lock";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Writes python/locks/ from python/profiles.toml";
  };
  runtimeInputs = [ environment ];
  # Debian's packages come through apt, and their lock must be writable where no build root can be had: nixw does it.
  text = ''
    if [ "''${1:-}" = debian ]; then
      if [ ! -x nixw ]; then
        echo "lock: error: no nixw here; call this in the folder of the checkout" >&2
        exit 2
      fi
      exec ./nixw run .#lock -- "$@"
    fi
    unset PYTHONHOME PYTHONSTARTUP
    PYTHONPATH=${../wheelhouse/lock} exec python3 -P -s -m gb10_lock "$@"
  '';
}
