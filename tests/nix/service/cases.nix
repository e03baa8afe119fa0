# What the tests look at: units and assertions for some values, and the module itself where the base's lib evaluates modules
# (nixpkgs; the Debian base's does not).
{ lib }:

let
  unit = import ../../../nix/modules/unit.nix;
  together = import ../../../nix/modules/assertions.nix;

  plain = {
    gpu = true;
    model = "org/model";
    host = "127.0.0.1";
    port = 8000;
    openFirewall = false;
    apiKeyFile = null;
    hfTokenFile = null;
    settings = { };
    extraArguments = [ ];
    readableFolders = [ ];
  };

  # Values that are wrong together, each with a word of what is said.
  wrong = {
    apiKeyFile = {
      host = "0.0.0.0";
    };
    "reached from other machines" = {
      host = "192.168.1.5";
    };
    "is in the Nix store" = {
      apiKeyFile = "${builtins.storeDir}/abc-key";
    };
    "hfTokenFile is in the Nix store" = {
      hfTokenFile = "${builtins.storeDir}/abc-token";
    };
    "model is empty" = {
      model = "";
    };
    "which is an option" = {
      model = "--model";
    };
    "model is not set" = {
      model = null;
    };
    "opens a port that nobody can reach" = {
      openFirewall = true;
    };
    "PORT (set services.gb10.port)" = {
      settings.PORT = 1;
    };
    "VLLM_API_KEY (set services.gb10.apiKeyFile)" = {
      settings.VLLM_API_KEY = "secret";
    };
    "no variables: a b" = {
      settings."a b" = 1;
    };
    "--api-key (set services.gb10.apiKeyFile)" = {
      extraArguments = [ "--api_key=secret" ];
    };
    "--host (set services.gb10.host)" = {
      extraArguments = [
        "--host"
        "0.0.0.0"
      ];
    };
    "cannot be made visible" = {
      model = "/home/ada/my models/x";
    };
  };
  right = [
    { }
    {
      host = "::1";
    }
    {
      host = "127.0.0.53";
    }
    {
      host = "0.0.0.0";
      apiKeyFile = "/etc/gb10/api-key";
      openFirewall = true;
    }
    {
      gpu = false;
      model = null;
    }
    {
      model = "/srv/a model";
      settings = {
        MAX_MODEL_LEN = "32k";
        GPU_MEMORY_UTIL = 0.8;
      };
      extraArguments = [
        "--speculative-config"
        ''{"method": "mtp"}''
      ];
    }
  ];

  server = values: unit.server ({ command = "/bin/serve"; } // values);

  # The module among as much of NixOS as it touches.
  evaluated =
    values:
    (lib.evalModules {
      modules = [
        (import ../../../nix/modules/nixos.nix {
          packages.x86_64-linux = {
            service = {
              type = "derivation";
              name = "service";
              outPath = "/stub/service";
              meta.mainProgram = "service";
            };
            service-cuda = {
              type = "derivation";
              name = "service-cuda";
              outPath = "/stub/service-cuda";
              meta.mainProgram = "service-cuda";
            };
          };
        })
        {
          options = lib.genAttrs [ "assertions" "systemd" "networking" ] (
            _:
            lib.mkOption {
              type = lib.types.anything;
              default = { };
            }
          );
        }
        { services.gb10 = values; }
      ];
      specialArgs.pkgs = {
        stdenv.hostPlatform.system = "x86_64-linux";
        writeShellScript = _name: text: text;
      };
    }).config;

  moduleOf =
    values:
    let
      config = evaluated (values // { enable = true; });
    in
    {
      services = config.systemd.services;
      firewall = config.networking;
      failed = map (one: one.message) (builtins.filter (one: !one.assertion) config.assertions);
    };
  fails = values: !(builtins.tryEval (builtins.deepSeq (moduleOf values) true)).success;
in
{
  wrong = builtins.mapAttrs (_words: values: together.failed (plain // values)) wrong;
  right = map (values: together.failed (plain // values)) right;
  variables = map together.toVariable [
    "a"
    1
    0.85
    true
    false
    null
  ];
  inherit (unit) defaults;

  units = {
    gpu = unit.text (server {
      gpu = true;
    });
    cpu = unit.text (server {
      gpu = false;
    });
    all = unit.text (server {
      gpu = true;
      environmentFiles = [ "/etc/gb10/serve.conf" ];
      credentials = [
        "gb10_api-key:/a"
        "gb10_hf-token:/b"
      ];
      readable = [
        "/home/a"
        "/root/b"
      ];
      devices = [ "char-infiniband_verbs rw" ];
      memoryMax = "96G";
      startTimeout = "infinity";
      watchdog = null;
    });
    device = unit.text (unit.device { command = "/bin/serve"; });
  };

  module =
    if lib ? evalModules then
      {
        plain = moduleOf { model = "org/model"; };
        cpu = moduleOf { gpu = false; };
        all = moduleOf {
          model = "/home/ada/model";
          host = "0.0.0.0";
          port = 9000;
          apiKeyFile = "/etc/gb10/key";
          openFirewall = true;
          settings = {
            MAX_NUM_SEQS = 16;
            VLLM_LOGGING_LEVEL = null;
            NOTE = "it's $HOME %h";
          };
          extraArguments = [ ''{"a": "b c"}'' ];
        };
        wrong = moduleOf {
          model = "";
          host = "0.0.0.0";
        };
        refused = map fails [
          {
            model = "a";
            port = 70000;
          }
          {
            model = "a";
            port = "8000";
          }
          {
            model = "a";
            watchdog = 5;
          }
          {
            model = [ ];
          }
          {
            model = "a";
            settings.A = [ ];
          }
          {
            model = "a";
            nonsense = 1;
          }
        ];
      }
    else
      null;
}
