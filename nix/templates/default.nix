# `nix flake init -t FLAKE#NAME`.
rec {
  nixos = {
    path = ./nixos;
    description = "A NixOS machine that serves an NVFP4 model with gb10";
    welcomeText = ''
      Next: the name of your copy of gb10, the model and the machine's hardware in flake.nix; then

      ```
      nixos-rebuild switch --flake .#spark
      ```
    '';
  };

  dgx-os = {
    path = ./dgx-os;
    description = "gb10 as a service of a DGX OS machine with Nix: one pinned version, installed with one command";
    welcomeText = ''
      Next: the name of your copy of gb10 in flake.nix; then

      ```
      nix run .#serve -- /path/to/model           # to try it
      sudo nix run .#install -- /path/to/model    # to have it as a service
      ```
    '';
  };

  default = nixos;
}
