# torchvision with the patches of patches/torchvision: the CPU environment imports a CUDA build of it.
_final: prev: {
  gb10 = prev.gb10 // {
    wheelChanges = prev.gb10.wheelChanges // {
      torchvision = {
        patches = import ../nix/patches.nix ../patches/torchvision;
        # The compiled half needs libtorch_cuda.so, so it never loads here, and brings libraries of NVIDIA's: without it
        # nothing of NVIDIA's is in the CPU environment. Can go when the index has a CPU build.
        only.cpu.postInstall = ''
          rm -r torchvision.libs torchvision/_C.so torchvision/image.so
        '';
      };
    };
  };
}
