# A guard against FP4 code for generic 12.x targets, in the headers where such code always passes: CUDA's FP4 conversions
# (which CCCL's FP4 types end in) and CUTLASS's 12.x kernels. CCCL's own wheel has no line that only FP4 code reaches.
# Each patch's header says when it can go.
final: prev: {
  gb10 = prev.gb10 // {
    wheelChanges = prev.gb10.wheelChanges // {
      nvidia-cuda-runtime.patches = [ ../patches/cccl/0001-fp4-generic-target.patch ];
      nvidia-cutlass.patches = [ ../patches/cccl/0002-cutlass-generic-target.patch ];
    };

    cuda-toolkit = import ../nix/packages/cuda-toolkit.nix { pkgs = final; };
    # CUTLASS's headers, from the wheel that carries its sources.
    cutlass = final.gb10.wheels.cuda-toolkit.nvidia-cutlass;
  };
}
