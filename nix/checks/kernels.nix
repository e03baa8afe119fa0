# The kernels without a GPU: host builds of their headers, their machine code, what the operators refuse. tests/gpu skips
# here and says why.
{
  pkgs,
  room,
  sets,
}:

let
  inherit (pkgs.gb10)
    cuda-toolkit
    kernels
    kernels-software
    vllm-fp4
    vllm-fp4-gemm
    vllm-fp4-software
    ;
in
{
  kernels = room {
    name = "kernels";
    tests = [ ../../tests/kernels ];
    sources =
      sets.plugin
      ++ sets.gb10 [ "kernels" ]
      ++ [
        ../../kernels
        ../../vllm_fp4
      ];
    variables = {
      GB10_CUDA_TOOLKIT = cuda-toolkit;
      GB10_KERNELS = kernels;
      GB10_KERNELS_SOFTWARE = kernels-software;
      GB10_VLLM_FP4 = "${vllm-fp4}/lib";
      GB10_VLLM_FP4_OBJECTS = pkgs.runCommand "gb10-vllm-fp4-objects" { } ''
        mkdir -p "$out/hardware" "$out/software"
        ln -s ${vllm-fp4}/objects/* ${vllm-fp4}/lib/* ${vllm-fp4-gemm}/objects/* "$out/hardware/"
        ln -s ${vllm-fp4-software}/objects/* ${vllm-fp4-software}/lib/* "$out/software/"
      '';
    };
  };

  gpu = room {
    name = "gpu";
    tests = [ ../../tests/gpu ];
    sources = sets.plugin ++ sets.gb10 [ "kernels" ];
  };
}
