# `nix run .#lock`: writes python/locks/ of the checkout that it is called in.
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
  text = ''
    unset PYTHONHOME PYTHONSTARTUP
    PYTHONPATH=${../wheelhouse/lock} exec python3 -P -s -m gb10_lock "$@"
  '';
}
