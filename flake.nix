{
  description = "NVFP4 language models on NVIDIA's DGX Spark, at the speed its memory allows";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs, ... }:
    let
      inherit (nixpkgs) lib;
      overlays = import ./overlays { inherit lib; };
      inherit (import ./nix/licences.nix { inherit lib; }) unfree;
      # One evaluation of the base for each system, shared by all outputs.
      pkgsFor = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system:
        import nixpkgs {
          inherit system;
          overlays = [ overlays.default ];
          # NVIDIA's wheels by name and nothing else: who runs the CUDA half accepts NVIDIA's terms (docs/nix.md).
          config.allowUnfreePredicate = package: builtins.elem (lib.getName package) unfree;
        }
      );
      forAllSystems = make: builtins.mapAttrs (_system: make) pkgsFor;
      packages = forAllSystems (
        pkgs:
        import ./nix/packages {
          inherit pkgs;
          # Nix does not say the commit where an input is overridden, as nixw does for the Debian base.
          source = {
            revision = self.rev or self.dirtyRev or "unknown";
            narHash = self.narHash or "unknown";
          };
        }
      );
    in
    {
      inherit overlays packages;
      # For the allowUnfreePredicate of a flake that takes the overlays.
      lib = { inherit unfree; };
      legacyPackages = forAllSystems (pkgs: import ./nix/packages/internal.nix { inherit pkgs; });
      apps = forAllSystems (
        pkgs:
        import ./nix/apps {
          inherit pkgs;
          aarch64 = pkgsFor.aarch64-linux;
        }
      );
      nixosModules = rec {
        gb10 = import ./nix/modules/nixos.nix { inherit packages; };
        default = gb10;
      };
      templates = import ./nix/templates;
      devShells = forAllSystems (pkgs: import ./nix/shells.nix { inherit pkgs; });
      checks = forAllSystems (pkgs: import ./nix/checks { inherit pkgs; });
      formatter = forAllSystems (pkgs: pkgs.gb10.formatter);
    };
}
