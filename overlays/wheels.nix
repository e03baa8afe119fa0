# pkgs.gb10: the interpreter, the wheels of python/locks/, the environments and the project's own package.
final: prev:

let
  profiles = builtins.fromTOML (builtins.readFile ../python/profiles.toml);
in
{
  gb10 = prev.gb10 or { } // {
    # vLLM's wheels are qualified on 3.12. The Debian base has 3.11, for which CPU torch can be had without an index.
    python = final.python312 or final.python311;

    # What manylinux wheels expect of the system beyond glibc.
    wheelLibraries = [
      final.stdenv.cc.cc.lib
      final.zlib
      final.numactl
    ];

    # Wheel name -> { patches, postInstall }; the overlays that follow add to it.
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
      cuda-toolkit = final.gb10.wheelhouse.wheelsOf { profile = "cuda-toolkit"; };
    };

    package = import ../nix/packages/gb10.nix { pkgs = final; };
    inherit (import ../nix/apps/serve.nix { pkgs = final; }) serve serve-cuda;
    lock = import ../nix/apps/lock.nix { pkgs = final; };
    formatter = import ../nix/apps/formatter.nix { pkgs = final; };

    environment =
      {
        name,
        wheels,
        extra ? [ ],
      }:
      final.gb10.wheelhouse.mkEnvironment {
        inherit name;
        packages = builtins.attrValues wheels ++ extra;
        allowedDuplicates = map (
          entry: final.lib.removePrefix "site/" entry.path
        ) profiles.allowed-duplicates;
      };

    cpu-env = final.gb10.environment {
      name = "gb10-cpu-env";
      wheels = final.gb10.wheels.cpu;
      extra = [ final.gb10.package ];
    };

    # The CPU environment with what draws plots.
    report-env = final.gb10.environment {
      name = "gb10-report-env";
      wheels = final.gb10.wheels.report // final.gb10.wheels.cpu;
      extra = [ final.gb10.package ];
    };

    cuda-env = final.gb10.environment {
      name = "gb10-cuda-env";
      wheels = final.gb10.wheels.cuda;
      extra = [ final.gb10.package ];
    };

    # The CUDA wheels for aarch64 unpacked and patched on any machine: shows that they exist, apply and do not collide.
    # Nothing of it runs where it is built.
    cuda-aarch64-unpacked = final.gb10.environment {
      name = "gb10-cuda-aarch64-unpacked";
      wheels = final.gb10.wheelhouse.wheelsOf {
        profile = "cuda";
        system = "aarch64-linux";
      };
    };

    # What the tests and the linters run in: the CPU profile, plots and the tools.
    test-env = final.gb10.environment {
      name = "gb10-test-env";
      # Not Triton: the CPU profile has none, and vLLM looks whether it is there.
      wheels =
        removeAttrs final.gb10.wheels.test [ "triton" ]
        // final.gb10.wheels.report
        // final.gb10.wheels.cpu;
      extra = [ final.gb10.package ];
    };
  };
}
