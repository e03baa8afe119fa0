# FlashInfer with modules that were compiled ahead of time: it loads data/aot/NAME/NAME.so where that exists and calls no
# compiler. 0.7.0.post1 itself needs no patch: for 12.0 and 12.1 it builds for 120f and 121a, never for a generic target
# (tests/patches/test_flashinfer.py says when that changes).
final: prev: {
  gb10 = prev.gb10 // {
    # NAME -> a derivation that holds NAME.so. The kernels' overlay adds to it.
    flashinferModules = { };

    flashinferHook =
      modules:
      builtins.concatStringsSep "\n" (
        builtins.attrValues (
          builtins.mapAttrs (
            name: module: ''install -D -m 444 ${module}/${name}.so "flashinfer/data/aot/${name}/${name}.so"''
          ) modules
        )
      );

    wheelChanges = prev.gb10.wheelChanges // {
      flashinfer-python.postInstall = final.gb10.flashinferHook final.gb10.flashinferModules;
    };
  };
}
