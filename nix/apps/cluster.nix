# `nix run .#cluster -- plan|up HOST HOST -- MODEL …`: one engine on several hosts, over ssh.
#
# What serves there is this build's serve-cuda (serve-cuda-ray with `--executor ray`), by its path in the store. It is not built for this: who plans may be a
# machine that serves nothing, and each host is asked whether it has it.
{ pkgs }:

let
  environment = pkgs.gb10.environment {
    name = "gb10-cluster-env";
    description = "What `gb10 cluster` imports, without vLLM";
    wheels = pkgs.gb10.commandLine // {
      inherit (pkgs.gb10.wheels.cpu) psutil;
    };
    extra = [ pkgs.gb10.package ];
    isolated = true;
  };
  pathOf = package: builtins.unsafeDiscardStringContext (pkgs.lib.getExe package);
in
pkgs.writeShellApplication {
  name = "cluster";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Plans, checks and runs one engine on several hosts, over ssh";
  };
  # On the Debian base it is the machine's.
  runtimeInputs = pkgs.lib.optionals (pkgs ? openssh) [ pkgs.openssh ];
  text = ''
    export GB10_CLUSTER_SERVE=''${GB10_CLUSTER_SERVE:-${pathOf pkgs.gb10.serve-cuda}}
    export GB10_CLUSTER_SERVE_RAY=''${GB10_CLUSTER_SERVE_RAY:-${pathOf pkgs.gb10.serve-cuda-ray}}
    ${import ./isolated.nix environment "gb10 cluster"}
  '';
}
