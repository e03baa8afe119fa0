# services.gb10 for NixOS. The unit is unit.nix's, which DGX OS has as well; what follows is types, words and the wiring.
{ packages }:
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib)
    concatStringsSep
    escapeShellArg
    escapeShellArgs
    getExe
    literalExpression
    mapAttrsToList
    mkEnableOption
    mkIf
    mkOption
    types
    ;

  cfg = config.services.gb10;
  unit = import ./unit.nix;
  together = import ./assertions.nix;
  built = packages.${pkgs.stdenv.hostPlatform.system};

  # A program without arguments: no value goes through systemd's quoting.
  start = pkgs.writeShellScript "gb10-start" ''
    ${concatStringsSep "\n" (
      mapAttrsToList (
        name: value:
        let
          text = together.toVariable value;
        in
        if text == null then "unset ${name}" else "export ${name}=${escapeShellArg text}"
      ) cfg.settings
    )}
    exec ${getExe cfg.package} ${
      escapeShellArgs (
        lib.optional (cfg.model != null) cfg.model
        ++ [
          "--host"
          cfg.host
          "--port"
          (toString cfg.port)
        ]
        ++ cfg.extraArguments
      )
    }
  '';

  toService = made: {
    inherit (made)
      description
      wantedBy
      wants
      after
      unitConfig
      serviceConfig
      ;
  };
in
{
  options.services.gb10 = {
    enable = mkEnableOption "gb10, which serves an NVFP4 language model with an OpenAI-compatible API";

    gpu = mkOption {
      type = types.bool;
      default = true;
      description = "Whether it serves on an NVIDIA GPU; else on the CPU.";
    };

    package = mkOption {
      type = types.package;
      default = if cfg.gpu then built.service-cuda else built.service;
      defaultText = literalExpression "service-cuda of this flake, or service without gpu";
      description = "What the unit starts. The default has NVIDIA's libraries, which are not free software.";
    };

    model = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4";
      description = "Checkpoint folder or hub name (org/name). Without a GPU null is the demo model.";
    };

    host = mkOption {
      type = types.str;
      default = "127.0.0.1";
      example = "0.0.0.0";
      description = "Address to listen on. Any but loopback needs apiKeyFile.";
    };

    port = mkOption {
      type = types.port;
      default = 8000;
      description = "Port to listen on.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the firewall lets others reach the port.";
    };

    apiKeyFile = mkOption {
      type = types.nullOr (types.either types.str types.path);
      default = null;
      example = "/etc/gb10/api-key";
      description = "File with the key that clients must send. systemd reads it as root and hands it to the service alone.";
    };

    hfTokenFile = mkOption {
      type = types.nullOr (types.either types.str types.path);
      default = null;
      example = "/etc/gb10/hf-token";
      description = "File with a token for Hugging Face, for models that ask for one.";
    };

    settings = mkOption {
      type = types.attrsOf (
        types.nullOr (
          types.oneOf [
            types.str
            types.int
            types.float
            types.bool
            types.path
          ]
        )
      );
      default = { };
      example = {
        MAX_MODEL_LEN = "32k";
        MAX_NUM_SEQS = 16;
      };
      description = "Variables of `gb10 serve` and of vLLM, as docs/configuration.md lists them; null leaves one out.";
    };

    extraArguments = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "--enable-auto-tool-choice"
        "--speculative-config"
        ''{"method": "mtp", "num_speculative_tokens": 1}''
      ];
      description = "More arguments of `gb10 serve` and of vLLM, each as it is: JSON survives.";
    };

    readableFolders = mkOption {
      type = types.listOf (types.either types.str types.path);
      default = [ ];
      example = [ "/home/ada/models" ];
      description = "Folders below /home or /root that the service may read. A model there is readable anyway.";
    };

    devices = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "char-infiniband_verbs rw" ];
      description = "Devices beside NVIDIA's that the service may use, as systemd's DeviceAllow names them.";
    };

    memoryMax = mkOption {
      type = types.either types.ints.positive types.str;
      default = unit.defaults.memoryMax;
      example = "96G";
      description = "Most memory of the service's processes (systemd's MemoryMax). What the GPU has of unified memory does not count there; gb10 keeps to the limit all the same when it plans.";
    };

    startTimeout = mkOption {
      type = types.either types.ints.positive (types.enum [ "infinity" ]);
      default = unit.defaults.startTimeout;
      description = "Seconds until the model must have answered its first request. A model that is fetched counts too.";
    };

    watchdog = mkOption {
      type = types.nullOr (types.ints.between 30 86400);
      default = unit.defaults.watchdog;
      description = "Seconds without an answer of the model after which the service is started anew; null: nobody looks.";
    };

    deviceTimeout = mkOption {
      type = types.ints.positive;
      default = unit.defaults.deviceTimeout;
      description = "Seconds to wait for the driver of the GPU before each start.";
    };
  };

  config = mkIf cfg.enable {
    assertions = together.assertions cfg;

    networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall [ cfg.port ];

    systemd.services = {
      gb10 = toService (
        unit.server {
          command = "${start}";
          inherit (cfg)
            gpu
            devices
            memoryMax
            startTimeout
            watchdog
            ;
          readable = together.readable cfg;
          credentials =
            lib.optional (cfg.apiKeyFile != null) "gb10_api-key:${toString cfg.apiKeyFile}"
            ++ lib.optional (cfg.hfTokenFile != null) "gb10_hf-token:${toString cfg.hfTokenFile}";
        }
      );
    }
    // lib.optionalAttrs cfg.gpu {
      gb10-gpu = toService (
        unit.device {
          command = getExe cfg.package;
          timeout = cfg.deviceTimeout;
        }
      );
    };
  };
}
