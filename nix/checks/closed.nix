# What runs touches nothing of the machine but /nix, /proc, /dev, /sys and a /tmp, and writes nothing into the store.
{ pkgs, room, ... }:

let
  inherit (pkgs.gb10)
    python
    serve
    ;
in
{
  closed = room {
    name = "closed";
    tests = [ ../../tests/nix/closed ];
    variables = {
      GB10_PYTHON = python.interpreter;
      GB10_SERVE_COMMAND = pkgs.lib.getExe serve;
      # The closures, as files in the folder of the build.
      exportReferencesGraph = [
        "serve.graph"
        serve
        "python.graph"
        python
      ];
    };
  };
}
