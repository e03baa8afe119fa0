{
  description = "A machine that serves an NVFP4 model";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # The name of whoever's copy you take, for OWNER.
    gb10.url = "github:OWNER/gb10";
  };

  outputs =
    { nixpkgs, gb10, ... }:
    {
      nixosConfigurations.spark = nixpkgs.lib.nixosSystem {
        system = "aarch64-linux";
        modules = [
          gb10.nixosModules.default
          # nixos-generate-config writes it: disks, boot loader, kernel. ./hardware-configuration.nix
          {
            services.gb10 = {
              enable = true;
              model = "nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4";
              # For others on the network: an address, a key and the firewall.
              # host = "0.0.0.0";
              # apiKeyFile = "/etc/gb10/api-key";
              # openFirewall = true;
            };

            # NVIDIA's driver, which is not free software; gb10 brings the rest of CUDA.
            nixpkgs.config.allowUnfreePredicate =
              package:
              builtins.elem (nixpkgs.lib.getName package) [
                "nvidia-x11"
                "nvidia-settings"
                "nvidia-persistenced"
              ];
            services.xserver.videoDrivers = [ "nvidia" ];
            hardware.graphics.enable = true;
            hardware.nvidia.open = true;
            hardware.nvidia.nvidiaPersistenced = true;

            networking.hostName = "spark";
            system.stateVersion = "26.05";
          }
        ];
      };
    };
}
