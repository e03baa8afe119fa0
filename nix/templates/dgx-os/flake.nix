{
  description = "gb10 on a DGX OS machine";

  # The name of whoever's copy you take, for OWNER. flake.lock pins what is installed: nix flake update, then install again.
  inputs.gb10.url = "github:OWNER/gb10";

  outputs =
    { gb10, ... }:
    let
      # A Spark; x86_64-linux is there too.
      system = "aarch64-linux";
      inherit (gb10) apps;
    in
    {
      apps.${system} = {
        serve = apps.${system}.serve-cuda;
        install = apps.${system}.install-service;
        default = apps.${system}.serve-cuda;
      };
    };
}
