# The kernels without a GPU: host builds of their headers, their machine code, what the operators refuse. tests/gpu skips
# here and says why. vLLM's GEMM units take 7 GB of memory each: `nix build .#vllm-fp4-checks` looks at them.
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
    kernels-sparse24
    kernels-sparse24-software
    vllm-fp4
    vllm-fp4-software
    ;
  flashinferChecks = import ../packages/flashinfer-checks.nix { inherit pkgs; };
  # Also the command `gb10 sparse24`.
  sources =
    sets.plugin
    ++ sets.gb10 [
      "cli.py"
      "kernels"
    ];
  common = [
    ../../kernels/Makefile
    ../../kernels/include
  ];
  dense = common ++ [
    ../../kernels/add_norm
    ../../kernels/attention_front
    ../../kernels/bandwidth
    ../../kernels/fp8_gemv
    ../../kernels/gdn_decode
    ../../kernels/moe_decode
    ../../kernels/moe_grouped
    ../../kernels/moe_router
    ../../kernels/nvfp4_dequantize
    ../../kernels/nvfp4_gemv
    ../../kernels/nvfp4_search
    ../../kernels/quantize
  ];
  # Of tests/kernels what reads the kernels and nothing of Python's: a change of python/src leaves it alone.
  alone = [
    "abi"
    "add_norm"
    "attention_front"
    "fp8_gemv"
    "gdn_decode"
    "moe_decode"
    "moe_grouped"
    "moe_router"
    "nvfp4_dequantize"
    "nvfp4_gemv"
    "vllm_fp4_sass"
  ];
  aloneTests = "not sparse24 and not nvfp4_search and (on_the_cpu or machine_code or test_abi or vllm_fp4_sass)";
  # What both of these rooms look at.
  binaries = {
    GB10_CUDA_TOOLKIT = cuda-toolkit;
    GB10_KERNELS = kernels;
    GB10_KERNELS_SOFTWARE = kernels-software;
    GB10_VLLM_FP4_OBJECTS = pkgs.runCommand "gb10-vllm-fp4-objects" { } ''
      mkdir -p "$out/hardware" "$out/software"
      ln -s ${vllm-fp4}/objects/* ${vllm-fp4}/lib/* "$out/hardware/"
      ln -s ${vllm-fp4-software}/objects/* ${vllm-fp4-software}/lib/* "$out/software/"
    '';
  };
in
{
  kernels-alone = room {
    name = "kernels-alone";
    # Room `kernels` lints them.
    lint = false;
    tests = map (name: ../../tests/kernels + "/test_${name}.py") alone;
    arguments = "-k '${aloneTests}'";
    sources = dense ++ [
      ../../tests/kernels/conftest.py
      ../../tests/kernels/cubins.py
      ../../tests/kernels/host
      ../../tests/kernels/libraries.py
      ../../tests/kernels/on_the_host.py
    ];
    variables = binaries;
  };

  kernels = room {
    name = "kernels";
    tests = [ ../../tests/kernels ];
    arguments = "-k 'not sparse24 and not (${aloneTests})' --ignore tests/kernels/test_vllm_fp4_gemm.py --ignore tests/kernels/test_vllm_wheel_sass.py --ignore tests/kernels/test_flashinfer_modules.py";
    cuda = dense ++ [ ../../vllm_fp4 ];
    inherit sources;
    variables = binaries // {
      GB10_VLLM_FP4 = "${vllm-fp4}/lib";
    };
  };

  kernels-sparse24 = room {
    name = "kernels-sparse24";
    tests = [ ../../tests/kernels ];
    arguments = "-k sparse24";
    cuda = common ++ [ ../../kernels/sparse24 ];
    inherit sources;
    variables = {
      GB10_CUDA_TOOLKIT = cuda-toolkit;
      GB10_KERNELS_SPARSE24 = kernels-sparse24;
      GB10_KERNELS_SPARSE24_SOFTWARE = kernels-sparse24-software;
    };
  };

  # The smallest of FlashInfer's modules; `nix build .#flashinfer-checks` looks at all of them.
  flashinfer = flashinferChecks (pkgs.gb10.flashinfer.package [ pkgs.gb10.flashinfer.fp4-quantization ]);

  gpu = room {
    name = "gpu";
    tests = [ ../../tests/gpu ];
    sources =
      sets.plugin
      ++ sets.gb10 [ "kernels" ]
      ++ sets.lab-base
      ++ sets.lab [
        "kernel_bench"
        "quality"
        "speculative"
      ]
      ++ [ ../../tests/reference ];
  };
}
