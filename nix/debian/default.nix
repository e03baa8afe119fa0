# A stand-in for `import nixpkgs { … }`: the functions that the flake takes of its base and nothing else, from Debian's packages.
#
# Builds run in Nix's sandbox with the build root of packages.lock as /usr, /bin and /lib. Every derivation names it, by its
# content. Evaluation needs no root; ./nixw makes it.
{
  system ? builtins.currentSystem,
  overlays ? [ ],
  # Of nixpkgs' set-up options those that check-meta.nix names count here.
  config ? { },
}:

let
  lib = import ./lib.nix;

  inherit (import ./root.nix { inherit system; }) root;

  base =
    final:
    {
      inherit lib config;
      # Builds with phases (wheels, kernels, the packages), builds of one script (environments, the demo model, checks).
      inherit
        (import ./stdenv {
          inherit system root;
          runtime = final.debianRuntime;
          checkMeta = import ./check-meta.nix { inherit config system; };
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

      dockerTools = import ./docker { inherit final; };

      # The image's bill of materials: hashes and references of all that a store path needs.
      closureInfo =
        { rootPaths }:
        derivation {
          name = "closure-info";
          inherit system;
          builder = "/usr/bin/python3";
          args = [ ./closure_info.py ];
          __structuredAttrs = true;
          exportReferencesGraph.closure = rootPaths;
          debianRoot = root;
        };

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
