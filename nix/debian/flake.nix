{
  description = "gb10's stand-in for nixpkgs: the functions of nix/CONTRACT.md from Debian's packages";

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
