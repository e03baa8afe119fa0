# FlashInfer for 12.x with no compiler at run time: its modules compiled ahead of time, as the package that it looks for
# (flashinfer_jit_cache). That declares the target of the modules, and FlashInfer loads none where it does not run; a module
# in its own data/aot folder would be loaded on any GPU. 0.7.0.post1 itself needs no patch: for 12.0 and 12.1 it builds for
# 120f and 121a, never for a generic target (tests/patches/test_flashinfer.py says when that changes).
final: prev: {
  gb10 = prev.gb10 // {
    flashinfer = import ../nix/packages/flashinfer.nix { pkgs = final; };
    flashinfer-checks = import ../nix/packages/flashinfer-checks.nix { pkgs = final; } final.gb10.flashinfer;
  };
}
