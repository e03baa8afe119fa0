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
    inherit (pkgs.gb10) allowedDuplicates;
    isolated = true;
  };

  changes = pkgs.gb10.wheelChanges;

  # aarch64's CUDA tools, unpacked here.
  toolkit = wheelsOf changes "cuda-toolkit";

  # Our kernels as a Spark builds them, but for who unpacked the wheels: nvcc, its parts and g++ are aarch64's.
  kernelsOn =
    torch:
    let
      wheels = aarch64.gb10.wheels // {
        cpu = { inherit torch; };
        cuda-toolkit = toolkit;
      };
      changed = aarch64 // {
        gb10 = aarch64.gb10 // {
          inherit wheels;
          cuda-toolkit = import ../packages/cuda-toolkit.nix {
            pkgs = pkgs // {
              gb10 = pkgs.gb10 // {
                inherit wheels;
              };
            };
          };
        };
      };
    in
    (import ../../overlays/kernels.nix changed changed).gb10;
  stand-in = import ./stand-in.nix {
    inherit pkgs aarch64 changes;
    torch = (wheelsOf changes "cuda").torch;
  };

  # The image for the CPU, of these wheels.
  imageOf =
    wheels:
    let
      changed = aarch64 // {
        gb10 = aarch64.gb10 // {
          inherit (pkgs.gb10) demo-model;
          wheels = aarch64.gb10.wheels // {
            cpu = wheels;
          };
          cpu-env = (wheelhouse { }).mkEnvironment {
            name = "gb10-aarch64-cpu-env";
            packages = builtins.attrValues wheels ++ [ pkgs.gb10.package ];
            inherit (pkgs.gb10) allowedDuplicates;
            isolated = true;
          };
          inherit (import ../apps/serve.nix { pkgs = changed; }) serve;
        };
      };
    in
    (import ../image { pkgs = changed; }).image-cpu;

  app =
    {
      name,
      torch,
      env,
      # What the image has.
      cpu,
    }:
    import ./app.nix {
      inherit
        pkgs
        aarch64
        name
        env
        toolkit
        ;
      kernels = kernelsOn torch;
      image = imageOf cpu;
    };
in
{
  # What serves on a GPU.
  emulated-cuda = import ./cuda.nix {
    inherit pkgs aarch64;
    env = cudaEnvironment;
  };

  # With PyTorch's own CPU build.
  emulated = app {
    name = "emulated";
    inherit (wheelsOf changes "cpu") torch;
    env = environment (toolsOf changes);
    cpu = wheelsOf changes "cpu";
  };

  # Where only mirrors can be reached.
  emulated-mirrored = app {
    name = "emulated-mirrored";
    inherit (stand-in) torch;
    env = environment (toolsOf stand-in.changes // { inherit (stand-in) torch stubs; });
    cpu = wheelsOf stand-in.changes "cpu" // {
      inherit (stand-in) torch stubs;
    };
  };
}
