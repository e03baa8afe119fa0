# What is wrong with the values of services.gb10 together, beside their types. Plain functions, as unit.nix.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    filter
    head
    isString
    match
    split
    substring
    ;

  # Variables that have an option of their own, or are secrets.
  elsewhere = {
    MODEL = "model";
    HOST = "host";
    PORT = "port";
    VLLM_API_KEY = "apiKeyFile";
    HF_TOKEN = "hfTokenFile";
  };
  options = {
    "--model" = "model";
    "--host" = "host";
    "--port" = "port";
    "--api-key" = "apiKeyFile";
  };

  isName = text: match "[A-Za-z_][A-Za-z0-9_]*" text != null;
  nameOf = word: builtins.replaceStrings [ "_" ] [ "-" ] (head (split "=" word));
  below =
    folder: path:
    path == folder || substring 0 (builtins.stringLength folder + 1) path == "${folder}/";
  isSecretPath = path: path == null || !below builtins.storeDir (toString path);
  # systemd would read more than a path out of these.
  isPlain = path: match "/[A-Za-z0-9/._+@=,-]*" path != null;
in
rec {
  isLoopback =
    host: host == "localhost" || host == "::1" || match "127(\\.[0-9]{1,3}){3}" host != null;

  # Folders that ProtectHome hides.
  isHidden = path: builtins.any (folder: below folder path) [
    "/home"
    "/root"
    "/run/user"
  ];
  readable =
    cfg:
    filter isHidden (
      (if cfg.model != null then [ cfg.model ] else [ ]) ++ map toString cfg.readableFolders
    );

  assertions =
    cfg:
    let
      variables = filter (name: elsewhere ? ${name}) (attrNames cfg.settings);
      names = filter (name: !isName name) (attrNames cfg.settings);
      words = filter (word: options ? ${nameOf word}) cfg.extraArguments;
      folders = filter (path: !isPlain path) (readable cfg);
    in
    [
      {
        assertion = cfg.model == null || (cfg.model != "" && substring 0 1 cfg.model != "-");
        message = "services.gb10.model is ${
          if cfg.model == "" then "empty" else "'${toString cfg.model}', which is an option"
        }; give a checkpoint folder or a hub name (org/name)";
      }
      {
        assertion = cfg.model != null || !cfg.gpu;
        message = "services.gb10.model is not set; give a checkpoint folder or a hub name (org/name). Only the CPU has a demo model";
      }
      {
        assertion = isLoopback cfg.host || cfg.apiKeyFile != null;
        message = "services.gb10.host ${cfg.host} can be reached from other machines, so clients must send a key: set services.gb10.apiKeyFile, or leave the host at 127.0.0.1";
      }
      {
        assertion = isSecretPath cfg.apiKeyFile;
        message = "services.gb10.apiKeyFile is in the Nix store, which everybody can read; give a path outside of it as a string, such as \"/etc/gb10/api-key\"";
      }
      {
        assertion = isSecretPath cfg.hfTokenFile;
        message = "services.gb10.hfTokenFile is in the Nix store, which everybody can read; give a path outside of it as a string, such as \"/etc/gb10/hf-token\"";
      }
      {
        assertion = !(cfg.openFirewall && isLoopback cfg.host);
        message = "services.gb10.openFirewall opens a port that nobody can reach, since services.gb10.host is ${cfg.host}; set the host to an address of this machine, or to 0.0.0.0";
      }
      {
        assertion = variables == [ ];
        message = "services.gb10.settings has ${
          concatStringsSep ", " (map (name: "${name} (set services.gb10.${elsewhere.${name}})") variables)
        }";
      }
      {
        assertion = names == [ ];
        message = "services.gb10.settings has names that are no variables: ${concatStringsSep ", " names}";
      }
      {
        assertion = words == [ ];
        message = "services.gb10.extraArguments has ${
          concatStringsSep ", " (map (word: "${nameOf word} (set services.gb10.${options.${nameOf word}})") words)
        }";
      }
      {
        assertion = folders == [ ];
        message = "services.gb10: ${concatStringsSep ", " folders} cannot be made visible to the service: systemd takes paths of letters, digits and /._+@=,- there; rename it, or move it out of /home";
      }
    ];

  # The assertions that fail.
  failed = cfg: map (one: one.message) (filter (one: !one.assertion) (assertions cfg));

  # A value of `settings` as a variable, null for none.
  toVariable =
    value:
    if isString value || value == null then
      value
    else if builtins.isBool value then
      (if value then "1" else "0")
    else if builtins.isPath value then
      toString value
    else
      builtins.toJSON value;
}
