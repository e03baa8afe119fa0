# The package that serves, its environments, and what `nix run`, `nix fmt` and `nix develop` start.
final: prev: {
  gb10 = prev.gb10 // {
    package = import ../nix/packages/gb10.nix { pkgs = final; };

    cpu-env = final.gb10.environment {
      name = "gb10-cpu-env";
      description = "vLLM for the CPU with gb10, as a virtual environment";
      wheels = final.gb10.wheels.cpu;
      extra = [ final.gb10.package ];
      isolated = true;
    };

    cuda-env = final.gb10.environment {
      name = "gb10-cuda-env";
      description = "vLLM for NVIDIA GPUs with gb10, as a virtual environment (NVIDIA's wheels are not free)";
      wheels = final.gb10.wheels.cuda;
      extra = [ final.gb10.package ];
      isolated = true;
    };

    # The same for GPUs of 12.x, with FlashInfer's modules.
    cuda-12x-env = final.gb10.environment {
      name = "gb10-cuda-12x-env";
      description = "As cuda-env, with FlashInfer's modules for GPUs of compute capability 12.x";
      wheels = final.gb10.wheels.cuda;
      extra = [
        final.gb10.package
        final.gb10.flashinfer
      ];
      isolated = true;
    };

    # The same with Ray, which vLLM uses where it is asked to.
    cpu-ray-env = final.gb10.environment {
      name = "gb10-cpu-ray-env";
      description = "As cpu-env, with Ray";
      wheels = final.gb10.wheels.cpu // final.gb10.wheels.ray;
      extra = [ final.gb10.package ];
      isolated = true;
    };
    cuda-ray-env = final.gb10.environment {
      name = "gb10-cuda-ray-env";
      description = "As cuda-env, with Ray";
      wheels = final.gb10.wheels.cuda // final.gb10.wheels.ray;
      extra = [ final.gb10.package ];
      isolated = true;
    };

    # The CUDA wheels for aarch64 unpacked and patched on any machine: shows that they exist, apply and do not collide.
    # Nothing of it runs where it is built.
    cuda-aarch64-unpacked = final.gb10.environment {
      name = "gb10-cuda-aarch64-unpacked";
      description = "CUDA wheels for aarch64, unpacked and patched on any machine";
      wheels = final.gb10.wheelhouse.wheelsOf {
        profile = "cuda";
        system = "aarch64-linux";
      };
    };

    # The tests' tools beside both packages: what `nix develop` gives.
    dev-env = final.gb10.environment {
      name = "gb10-dev-env";
      description = "What the development shell has: the tools of the tests, gb10 and the laboratory";
      wheels = final.gb10.wheels.tools;
      extra = [
        final.gb10.package
        final.gb10.lab
      ];
    };

    # The same for GPUs.
    cuda-dev-env = final.gb10.environment {
      name = "gb10-cuda-dev-env";
      description = "What the CUDA development shell has: the tools of the tests, gb10 and the laboratory";
      wheels = final.gb10.wheels.test // final.gb10.wheels.report // final.gb10.wheels.cuda;
      extra = [
        final.gb10.package
        final.gb10.lab
      ];
    };

    inherit (import ../nix/apps/serve.nix { pkgs = final; })
      serve
      serve-cuda
      serve-cuda-12x
      serve-cuda-ray
      serve-ray
      ;
    # What they need is in the store: the check `closed` for serve, this one for serve-cuda.
    cuda-closed-checks = import ../nix/packages/cuda-closed-checks.nix { pkgs = final; };
    inherit (import ../nix/image { pkgs = final; })
      image
      image-cpu
      image-cpu-ray
      image-ray
      ;
    inherit (import ../nix/image/sbom.nix { pkgs = final; })
      sbom
      sbom-cpu
      sbom-cpu-ray
      sbom-ray
      provenanceOf
      provenanceOfCpu
      provenanceOfCpuRay
      provenanceOfRay
      ;
    inherit (import ../nix/apps/push.nix { pkgs = final; })
      push
      push-cpu
      push-cpu-ray
      push-ray
      ;
    # What systemd starts, and what tells systemd so.
    inherit (import ../nix/modules/command.nix { pkgs = final; }) service service-cuda;
    inherit (import ../nix/apps/install-service.nix { pkgs = final; }) install-service install-service-cpu;
    audit = import ../nix/apps/audit.nix { pkgs = final; };
    bench = import ../nix/apps/bench.nix { pkgs = final; };
    cluster = import ../nix/apps/cluster.nix { pkgs = final; };
    completion = import ../nix/completion { pkgs = final; };
    docs = import ../nix/docs { pkgs = final; };
    inherit (import ../nix/apps/doctor.nix { pkgs = final; })
      doctor
      doctor-cpu
      doctor-cpu-ray
      doctor-cuda
      doctor-cuda-ray
      ;
    download = import ../nix/apps/download.nix { pkgs = final; };
    lock = import ../nix/apps/lock.nix { pkgs = final; };
    predict = import ../nix/apps/predict.nix { pkgs = final; };
    rebuild = import ../nix/apps/rebuild.nix { pkgs = final; };
    recipes = import ../nix/apps/recipes.nix { pkgs = final; };
    formatter = import ../nix/apps/formatter.nix { pkgs = final; };
  };
}
