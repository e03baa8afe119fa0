# aarch64 on an x86_64 machine: what `nix run .#emulated` runs, by user-mode emulation. x86_64's tools unpack and patch the
# wheels; what is emulated is what runs.
{
  # x86_64
  pkgs,
  # The same set for aarch64: its runtime, its Python.
  aarch64,
}:

let
  wheelhouse =
    changes:
    import ../wheelhouse {
      inherit pkgs changes;
      inherit (pkgs.gb10) python;
      target = aarch64;
      locks = ../../python/locks;
    };
  profiles = builtins.fromTOML (builtins.readFile ../../python/profiles.toml);
  wheelsOf = changes: profile: (wheelhouse changes).wheelsOf { inherit profile; };

  # The wheels of `tools` in overlays/wheels.nix.
  toolsOf =
    changes:
    removeAttrs (wheelsOf changes "test") [ "triton" ]
    // wheelsOf changes "report"
    // wheelsOf changes "cpu";

  # What serves, the lab and the tests' tools.
  environment =
    wheels:
    (wheelhouse { }).mkEnvironment {
      name = "gb10-aarch64-env";
      packages = builtins.attrValues wheels ++ [
        pkgs.gb10.package
        pkgs.gb10.lab
      ];
    };

  # What serves on a GPU: 8 GB, which only `emulated-cuda` needs.
  cudaEnvironment = (wheelhouse { }).mkEnvironment {
    name = "gb10-aarch64-cuda-env";
    packages = builtins.attrValues (wheelsOf changes "cuda") ++ [ pkgs.gb10.package ];
    allowedDuplicates = map (
      entry: pkgs.lib.removePrefix "site/" entry.path
    ) profiles.allowed-duplicates;
    isolated = true;
  };

  changes = pkgs.gb10.wheelChanges;
  stand-in = import ./stand-in.nix {
    inherit pkgs aarch64 changes;
    torch = (wheelsOf changes "cuda").torch;
  };

  app =
    name: env:
    import ./app.nix {
      inherit
        pkgs
        aarch64
        name
        env
        ;
      toolkit = (wheelsOf changes "cuda-toolkit");
    };
in
{
  # What serves on a GPU.
  emulated-cuda = import ./cuda.nix {
    inherit pkgs aarch64;
    env = cudaEnvironment;
  };

  # With PyTorch's own CPU build.
  emulated = app "emulated" (environment (toolsOf changes));

  # Where only mirrors can be reached.
  emulated-mirrored = app "emulated-mirrored" (
    environment (toolsOf stand-in.changes // { inherit (stand-in) torch stubs; })
  );
}
