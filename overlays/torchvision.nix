# torchvision with the patches of patches/torchvision: the CPU environment imports a CUDA build of it.
_final: prev: {
  gb10 = prev.gb10 // {
    wheelChanges = prev.gb10.wheelChanges // {
      torchvision.patches = import ../nix/patches.nix ../patches/torchvision;
    };
  };
}
