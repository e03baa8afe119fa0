# A stand-in for `import nixpkgs { … }`: the functions that the flake takes of its base and nothing else, from Debian's packages.
#
# Builds run in Nix's sandbox with nixw's unpacked build root as /usr, /bin and /lib. `packages` beside this file is the
# list of the root's packages and versions; its hash is part of every derivation.
{
  system ? builtins.currentSystem,
  overlays ? [ ],
  # nixpkgs' set-up options (allowUnfree and the like) mean nothing here.
  config ? { },
}:

let
  lib = import ./lib.nix;

  # Evaluation works without a root (`nix flake show` of a bare checkout); a build then says what is missing.
  rootId =
    if builtins.pathExists ./packages then
      builtins.substring 0 16 (builtins.hashFile "sha256" ./packages)
    else
      "none";

  base =
    final:
    {
      inherit lib config;
      # Builds with phases (wheels, kernels, the packages), builds of one script (environments, the demo model, checks).
      inherit
        (import ./stdenv {
          inherit system rootId;
          runtime = final.debianRuntime;
          compiler = final.debianCompiler;
        })
        stdenv
        runCommand
        writeText
        ;

      # CPU torch, which only PyTorch's own index has.
      fetchurl =
        {
          url,
          name ? baseNameOf url,
          sha256 ? null,
          hash ? null,
        }:
        import <nix/fetchurl.nix> {
          inherit name url;
          hash = if hash != null then hash else "sha256:${sha256}";
        };

      # The programs that `nix run` starts.
      writeShellApplication =
        {
          name,
          text,
          runtimeInputs ? [ ],
          meta ? { },
        }:
        final.runCommand name
          {
            inherit text;
            passAsFile = [ "text" ];
            path = builtins.concatStringsSep ":" (map (package: "${package}/bin") runtimeInputs);
            meta = {
              mainProgram = name;
            }
            // meta;
          }
          ''
            mkdir -p "$out/bin"
            {
              echo '#!${final.bash}/bin/bash'
              echo 'set -o errexit -o nounset -o pipefail'
              [ -z "$path" ] || echo "export PATH=\"$path:\$PATH\""
              cat "$textPath"
            } >"$out/bin/${name}"
            chmod +x "$out/bin/${name}"
            /bin/bash -n "$out/bin/${name}"
          '';

      # `nix develop`.
      mkShell =
        {
          packages ? [ ],
          shellHook ? "",
          ...
        }@attrs:
        final.stdenv.mkDerivation (
          removeAttrs attrs [ "packages" ]
          // {
            name = attrs.name or "shell";
            nativeBuildInputs = packages;
            inherit shellHook;
            dontUnpack = true;
            installPhase = ''
              mkdir -p "$out"
              export >"$out/environment"
            '';
          }
        );
    }
    // import ./from-root.nix { inherit final; };

  extended = builtins.foldl' (
    layer: overlay: final:
    let
      prev = layer final;
    in
    prev // overlay final prev
  ) base overlays;

  pkgs = extended pkgs;
in
pkgs
