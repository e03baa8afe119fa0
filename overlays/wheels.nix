# pkgs.gb10: the interpreter, the wheels of python/locks/, and environments of them.
final: prev:

let
  profiles = builtins.fromTOML (builtins.readFile ../python/profiles.toml);
in
{
  gb10 = prev.gb10 or { } // {
    # One version on both bases: all that was tested ran on 3.11, which Debian 12 has. nixpkgs is expected to drop it about
    # 2027-02 (Python itself ends it in 2027-10): then this becomes the version that the Debian base has by that time. The
    # lock has the wheels for 3.12 too, and vLLM's own tests use that; none of ours did.
    python = final.python311;

    # What manylinux wheels expect of the system beyond glibc.
    wheelLibraries = [
      final.stdenv.cc.cc.lib
      final.zlib
      final.numactl
    ];

    # Wheel name -> { patches, postInstall, only }; the overlays that follow add to it.
    wheelChanges = { };

    wheelhouse = import ../nix/wheelhouse {
      pkgs = final;
      locks = ../python/locks;
      inherit (final.gb10) python;
      changes = final.gb10.wheelChanges;
    };

    wheels = {
      cpu = final.gb10.wheelhouse.wheelsOf { profile = "cpu"; };
      cuda = final.gb10.wheelhouse.wheelsOf { profile = "cuda"; };
      test = final.gb10.wheelhouse.wheelsOf { profile = "test"; };
      report = final.gb10.wheelhouse.wheelsOf { profile = "report"; };
      lock = final.gb10.wheelhouse.wheelsOf { profile = "lock"; };
      ray = final.gb10.wheelhouse.wheelsOf { profile = "ray"; };
      cuda-toolkit = final.gb10.wheelhouse.wheelsOf { profile = "cuda-toolkit"; };
      sbom = final.gb10.wheelhouse.wheelsOf { profile = "sbom"; };
      completion = final.gb10.wheelhouse.wheelsOf { profile = "completion"; };
      docs = final.gb10.wheelhouse.wheelsOf { profile = "docs"; };
      # What the tests and the linters run in: the CPU profile, plots and the tools. Not Triton: the CPU profile has none,
      # and vLLM looks whether it is there.
      tools =
        removeAttrs final.gb10.wheels.test [ "triton" ] // final.gb10.wheels.report // final.gb10.wheels.cpu;
    };

    # Wheels as a PYTHONPATH, for a build that runs once and needs no environment.
    pythonPath =
      wheels:
      builtins.concatStringsSep ":" (
        map (wheel: "${wheel}/${final.gb10.python.sitePackages}") (builtins.attrValues wheels)
      );

    # What a command line of ours imports: typer, and what it reads values with.
    commandLine = {
      inherit (final.gb10.wheels.cpu)
        annotated-doc
        annotated-types
        pydantic
        pydantic-core
        shellingham
        typer
        typing-extensions
        typing-inspection
        ;
    };

    # Files that two wheels of an environment may have both, as python/profiles.toml says.
    allowedDuplicates = map (
      entry: final.lib.removePrefix "site/" entry.path
    ) profiles.allowed-duplicates;

    environment =
      {
        name,
        wheels,
        extra ? [ ],
        isolated ? false,
        description,
      }:
      final.gb10.wheelhouse.mkEnvironment {
        inherit name isolated;
        # It has links alone: each wheel has a licence of its own.
        meta = import ../nix/packages/meta.nix { pkgs = final; } {
          inherit description;
          sourceProvenance = [
            final.lib.sourceTypes.fromSource
            final.lib.sourceTypes.binaryNativeCode
          ];
        };
        packages = builtins.attrValues wheels ++ extra;
        inherit (final.gb10) allowedDuplicates;
      };

    # The wheels of `tools` alone: a check puts the sources that it reads on PYTHONPATH.
    test-env = final.gb10.environment {
      name = "gb10-test-env";
      description = "Tools of the tests, with vLLM for the CPU";
      wheels = final.gb10.wheels.tools;
    };
  };
}
