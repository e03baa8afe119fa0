{
  description = "gb10's stand-in for nixpkgs: the functions that the flake takes of it, from Debian's packages";

  outputs =
    { self }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
    in
    {
      lib = import ./lib.nix;
      legacyPackages = builtins.listToAttrs (
        map (system: {
          name = system;
          value = import self { inherit system; };
        }) systems
      );
    };
}
