# `nix run .#install-service [-- MODEL]`: gb10 as a service of a machine with systemd and Nix, such as DGX OS.
# `.#install-service-cpu` serves on the CPU, and fetches nothing of the other.
{ pkgs }:

let
  unit = import ../modules/unit.nix;

  installer =
    {
      name,
      service,
      gpu,
    }:
    let
      command = pkgs.lib.getExe service;
      # What the installer keeps of the store, so all that the units start.
      units = pkgs.writeText "gb10-units.json" (
        builtins.toJSON {
          inherit gpu;
          files = {
            "gb10.service" = unit.text (
              unit.server {
                inherit command gpu;
                environmentFiles = [ "/etc/gb10/serve.conf" ];
                # A folder: what lies in it, or nothing.
                credentials = [ "gb10:/etc/gb10/credentials" ];
              }
            );
          }
          // (
            if gpu then
              {
                "gb10-gpu.service" = unit.text (unit.device { inherit command; });
              }
            else
              { }
          );
        }
      );
    in
    pkgs.writeShellApplication {
      inherit name;
      meta = import ../packages/meta.nix { inherit pkgs; } {
        description = "Installs ${service.name} as a unit of systemd";
      };
      text = ''
        exec ${pkgs.gb10.python.interpreter} -I ${./install-service/install.py} --units ${units} "$@"
      '';
    };
in
{
  install-service = installer {
    name = "install-service";
    service = pkgs.gb10.service-cuda;
    gpu = true;
  };

  install-service-cpu = installer {
    name = "install-service-cpu";
    service = pkgs.gb10.service;
    gpu = false;
  };
}
