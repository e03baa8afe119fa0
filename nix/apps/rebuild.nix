# `nix run .#rebuild`: builds every derivation of this flake once more and compares (rebuild/rebuild.py).
#
# Which derivations, is evaluated here and not listed. The program keeps their .drv files, none of their outputs.
{ pkgs }:

let
  inherit (pkgs) gb10;

  derivation = package: builtins.unsafeDiscardOutputDependency package.drvPath;
  derivationsOf =
    set:
    builtins.listToAttrs (
      builtins.concatMap (
        name:
        if (set.${name}.type or null) == "derivation" then
          [
            {
              inherit name;
              value = derivation set.${name};
            }
          ]
        else
          [ ]
      ) (builtins.attrNames set)
    );

  # All that overlays/ make, but for this program.
  packages = derivationsOf (removeAttrs gb10 [ "rebuild" ]);
  checks = derivationsOf (import ../checks { inherit pkgs; });

  # What tests said, with the times that they took: results, not builds. Some are packages, by the name that checks have.
  isResult = name: builtins.substring 0 11 gb10.${name}.name == "gb10-check-";
  results =
    builtins.attrValues checks
    ++ map (name: packages.${name}) (builtins.filter isResult (builtins.attrNames packages));

  # What takes more than five minutes or 7 GB of memory for one unit: only by name, or with --all.
  long = [
    packages.vllm-fp4-gemm
  ]
  ++ builtins.attrValues (
    derivationsOf (removeAttrs gb10.flashinfer.groups [ "fp4-quantization" ])
  );

  # What nixpkgs built: what the flake takes of its base (nix/debian is the list), and what the base's functions make things
  # with. The Debian base's own derivations are this flake's. tests/nix/rebuild/control asks for them.
  base =
    if pkgs ? debianRuntime then
      [ ]
    else
      let
        contract = builtins.attrNames (
          import ../debian { system = pkgs.stdenv.hostPlatform.system; }
        );
        named = builtins.filter (name: pkgs ? ${name}) (
          contract
          ++ [
            "nixfmt"
            "statix"
            "deadnix"
          ]
        );
        taken = builtins.intersectAttrs (builtins.listToAttrs (
          map (name: {
            inherit name;
            value = null;
          }) named
        )) pkgs;
        samples = {
          program = pkgs.writeShellApplication {
            name = "sample";
            text = "";
          };
          command = pkgs.runCommand "sample" { } "";
          fetched = pkgs.fetchurl {
            url = "https://sample.invalid/";
            sha256 = builtins.hashString "sha256" "";
          };
          shell = pkgs.mkShell { name = "sample"; };
          pip = pkgs.python3Packages.pip;
        };
      in
      builtins.attrValues (derivationsOf taken) ++ builtins.attrValues (derivationsOf samples);

  flake = pkgs.writeText "gb10-rebuild.json" (
    builtins.toJSON {
      inherit (pkgs.stdenv.hostPlatform) system;
      # A check and a package of one name: the package.
      outputs = checks // packages;
      inherit results long base;
    }
  );
in
pkgs.writeShellApplication {
  name = "rebuild";
  text = ''
    exec ${gb10.python}/bin/python3 -I ${./rebuild/rebuild.py} --flake ${flake} \
      --exceptions ${./rebuild/exceptions.toml} "$@"
  '';
}
