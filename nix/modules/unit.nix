# The service, once: what systemd is told of it. NixOS (nixos.nix) and DGX OS (nix/apps/install-service.nix) have their units
# from here. Plain functions: a base without a module system has them too.
let
  inherit (builtins)
    attrNames
    concatLists
    concatMap
    concatStringsSep
    isBool
    isList
    map
    toString
    ;

  toWord =
    value: if isBool value then (if value then "true" else "false") else toString value;
  toLines =
    name: value: map (one: "${name}=${toWord one}") (if isList value then value else [ value ]);
  section =
    title: settings:
    [ "[${title}]" ] ++ concatLists (map (name: toLines name settings.${name}) (attrNames settings));

  # What no part of the service needs, whoever it runs as.
  confined = {
    CapabilityBoundingSet = "";
    LockPersonality = true;
    NoNewPrivileges = true;
    PrivateMounts = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    UMask = "0077";
  };
in
rec {
  # Values that both have where nobody says otherwise.
  defaults = {
    # A machine with unified memory keeps a twentieth for itself (gb10.serve.budget.host_reserve).
    memoryMax = "95%";
    # Seconds: for the first load, which may compile kernels and fetch the model.
    startTimeout = 3600;
    # Seconds without an answer after which the service is started anew. A long prefill of others may take minutes.
    watchdog = 600;
    # Seconds to wait for the driver of a GPU while the machine boots.
    deviceTimeout = 120;
  };

  # The server. `credentials`: values of LoadCredential; `readable`: models in folders that are hidden otherwise; `devices`:
  # more lines of DeviceAllow.
  server =
    {
      command,
      gpu,
      environmentFiles ? [ ],
      credentials ? [ ],
      readable ? [ ],
      devices ? [ ],
      memoryMax ? defaults.memoryMax,
      startTimeout ? defaults.startTimeout,
      watchdog ? defaults.watchdog,
    }:
    {
      description = "NVFP4 language model with an OpenAI-compatible API (gb10)";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ] ++ (if gpu then [ "gb10-gpu.service" ] else [ ]);
      after = [ "network-online.target" ] ++ (if gpu then [ "gb10-gpu.service" ] else [ ]);
      unitConfig = {
        # With the pauses below no fault comes so often; what starts it in a loop is stopped.
        StartLimitIntervalSec = 3600;
        StartLimitBurst = 30;
      };
      serviceConfig =
        confined
        // {
          Type = "notify";
          NotifyAccess = "main";
          ExecStart = command;
          KillMode = "mixed";
          TimeoutStartSec = startTimeout;
          TimeoutStopSec = 30;
          TimeoutAbortSec = 10;

          Restart = "on-failure";
          RestartSec = 5;
          # From 5 s to 5 minutes (systemd 254 and later; install-service writes one pause for older ones).
          RestartSteps = 6;
          RestartMaxDelaySec = 300;
          # What the user has to change. 75, memory that was short, is started again.
          RestartPreventExitStatus = 2;

          DynamicUser = true;
          StateDirectory = "gb10";
          StateDirectoryMode = "0700";
          CacheDirectory = "gb10";
          CacheDirectoryMode = "0700";
          RuntimeDirectory = "gb10";
          RuntimeDirectoryMode = "0700";
          WorkingDirectory = "%S/gb10";
          Environment = [
            "HOME=%S/gb10"
            "XDG_CACHE_HOME=%C/gb10"
            "XDG_RUNTIME_DIR=%t/gb10"
            "XDG_STATE_HOME=%S/gb10"
          ];

          MemoryMax = memoryMax;
          MemorySwapMax = 0;
          OOMPolicy = "stop";
          LimitCORE = 0;
          LimitMEMLOCK = "infinity";
          LimitNOFILE = 65536;

          KeyringMode = "private";
          # Code is compiled and run (torch.compile, Triton, oneDNN): MemoryDenyWriteExecute would end it.
          MemoryDenyWriteExecute = false;
          ProtectHome = if readable == [ ] then true else "tmpfs";
          RemoveIPC = true;
          # Netlink tells NCCL and Gloo the machine's addresses.
          RestrictAddressFamilies = "AF_INET AF_INET6 AF_NETLINK AF_UNIX";
          SystemCallFilter = [
            "@system-service"
            "~@privileged"
          ];
        }
        // (
          if gpu then
            {
              DevicePolicy = "closed";
              # 195 is NVIDIA's number for its GPUs and their control; the others' are given at load, and looked up by name
              # when the service starts: gb10-gpu.service has loaded them by then.
              DeviceAllow = [
                "char-195 rw"
                "char-nvidia-uvm rw"
                "char-nvidia-caps rw"
              ]
              ++ devices;
            }
          else
            { PrivateDevices = true; }
        )
        // (if watchdog == null then { } else { WatchdogSec = watchdog; })
        // (if environmentFiles == [ ] then { } else { EnvironmentFile = environmentFiles; })
        // (if credentials == [ ] then { } else { LoadCredential = credentials; })
        // (if readable == [ ] then { } else { BindReadOnlyPaths = readable; });
    };

  # Before it: loads what the driver has and waits for its devices, as root. With each start of the server, since it stays
  # not active.
  device =
    {
      command,
      timeout ? defaults.deviceTimeout,
    }:
    {
      description = "Devices of the NVIDIA driver for gb10";
      wantedBy = [ ];
      wants = [ ];
      after = [
        "nvidia-persistenced.service"
        "systemd-modules-load.service"
      ];
      unitConfig = { };
      serviceConfig = confined // {
        Type = "oneshot";
        ExecStart = "${command} --prepare-gpu ${toString timeout}";
        TimeoutStartSec = timeout + 60;
        # nvidia-modprobe and modprobe are the system's: the driver's own.
        Environment = [
          "PATH=/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin:/run/booted-system/sw/bin"
        ];
        # To load modules and to make device files, which nvidia-modprobe chowns.
        CapabilityBoundingSet = "CAP_SYS_MODULE CAP_MKNOD CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_SYS_ADMIN";
        ProtectKernelModules = false;
        ProtectClock = false;
        ProtectHome = true;
        ProtectSystem = true;
        UMask = "0022";
        RestrictAddressFamilies = "AF_UNIX AF_NETLINK";
        SystemCallFilter = [ "@system-service @module" ];
      };
    };

  # A unit file.
  text =
    unit:
    concatStringsSep "\n" (
      section "Unit" (
        { Description = unit.description; }
        // (if unit.after == [ ] then { } else { After = concatStringsSep " " unit.after; })
        // (if unit.wants == [ ] then { } else { Wants = concatStringsSep " " unit.wants; })
        // unit.unitConfig
      )
      ++ [ "" ]
      ++ section "Service" unit.serviceConfig
      ++ concatMap (target: [
        ""
        "[Install]"
        "WantedBy=${target}"
      ]) unit.wantedBy
      ++ [ "" ]
    );
}
