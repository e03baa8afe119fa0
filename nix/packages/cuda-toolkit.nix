# A CUDA toolkit from NVIDIA's wheels: nvcc and what it needs, with the patched CCCL, in one folder as nvcc expects it.
# The files are copied, not linked: nvcc finds its parts beside its own real path.
{ pkgs }:

pkgs.runCommand "gb10-cuda-toolkit"
  {
    wheels = map (wheel: "${wheel}") (builtins.attrValues pkgs.gb10.wheels.cuda-toolkit);
    inherit (pkgs.gb10.python) sitePackages;
    meta = import ./meta.nix { inherit pkgs; } {
      description = "NVIDIA's CUDA compiler and its headers, from NVIDIA's wheels";
      mainProgram = "nvcc";
      # Copies of NVIDIA's files.
      license = pkgs.lib.licenses.unfree;
      sourceProvenance = [ pkgs.lib.sourceTypes.binaryNativeCode ];
    };
  }
  ''
    mkdir -p "$out"
    for wheel in $wheels; do
      cp -r --no-preserve=mode,ownership "$wheel/$sitePackages"/nvidia/cu13/. "$out/" 2>/dev/null || true
      for bin in "$wheel/$sitePackages"/nvidia/cu13/bin "$wheel/$sitePackages"/nvidia/cu13/nvvm/bin; do
        [ -d "$bin" ] && chmod -R +x "$out/''${bin#*/nvidia/cu13/}"
      done
    done
    [ -x "$out/bin/nvcc" ]
    ln -sfn lib "$out/lib64"
  ''
