# mkDerivation and what follows from it, on the build root.
{
  system,
  root,
  runtime,
  # What is wrong with a package's `meta` here: an error, or null.
  checkMeta,
  compiler,
}:

let
  # Attributes that describe a derivation but are not part of its build.
  descriptive = [
    "meta"
    "passthru"
  ];

  mkDerivation =
    attrs:
    let
      name = attrs.name or "${attrs.pname}-${attrs.version}";
      identity = builtins.intersectAttrs {
        pname = null;
        version = null;
      } attrs;
      drv = derivation (
        removeAttrs attrs descriptive
        // {
          inherit name system;
          # As a variable too: `nix develop` reads it.
          outputs = [ "out" ];
          builder = "/bin/bash";
          args = [
            "-e"
            ./build.sh
          ];
          # `nix develop` and the builder read "$stdenv/setup".
          stdenv = ./.;
          # What the sandbox shows as /usr.
          debianRoot = root;
        }
      );
      package =
        drv
        // attrs.passthru or { }
        // {
          meta = attrs.meta or { };
        }
        // identity;
      # As in nixpkgs, what is refused can be looked at, but not built or referred to.
      unlessRefused = builtins.seq (checkMeta package);
    in
    package
    // {
      drvPath = unlessRefused drv.drvPath;
      outPath = unlessRefused drv.outPath;
    };

  runCommand =
    name: attrs: buildCommand:
    mkDerivation (
      attrs
      // {
        inherit name buildCommand;
        passAsFile = attrs.passAsFile or [ ] ++ [ "buildCommand" ];
      }
    );
in
{
  stdenv = {
    inherit mkDerivation;
    hostPlatform = {
      inherit system;
    };
    # For what needs a compiler at run time. Builds have the build root's.
    cc = compiler // {
      cc.lib = runtime;
      bintools.dynamicLinker = "${runtime}/lib/${
        {
          x86_64-linux = "ld-linux-x86-64.so.2";
          aarch64-linux = "ld-linux-aarch64.so.1";
        }
        .${system}
      }";
    };
  };

  inherit runCommand;

  writeText =
    name: text:
    runCommand name {
      inherit text;
      passAsFile = [ "text" ];
    } ''cp "$textPath" "$out"'';
}
