# What the units start: `gb10-service` supervises a program that serves (supervisor/), with that program's Python.
{ pkgs }:

let
  supervisor = pkgs.lib.fileset.toSource {
    root = ./supervisor;
    fileset = ./supervisor;
  };

  service =
    {
      name,
      program,
      environment,
      gpu,
      description,
    }:
    pkgs.writeShellApplication {
      inherit name;
      meta = import ../packages/meta.nix { inherit pkgs; } { inherit description; };
      # -I runs nothing out of the current folder; a folder that it is given counts as a program.
      text = ''
        unset PYTHONHOME PYTHONPATH PYTHONSTARTUP
        if [ "''${1:-}" != --prepare-gpu ]; then
          set -- ${if gpu then "--gpu " else ""}${pkgs.lib.getExe program} "$@"
        fi
        exec ${environment}/bin/python3 -I ${supervisor} "$@"
      '';
    };
in
{
  service = service {
    name = "service";
    program = pkgs.gb10.serve;
    environment = pkgs.gb10.cpu-env;
    gpu = false;
    description = "What a systemd unit starts: serve, supervised";
  };

  service-cuda = service {
    name = "service-cuda";
    program = pkgs.gb10.serve-cuda;
    environment = pkgs.gb10.cuda-env;
    gpu = true;
    description = "What a systemd unit starts: serve-cuda, supervised";
  };
}
