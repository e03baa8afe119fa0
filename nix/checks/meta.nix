# What packages say of themselves. `meta` is evaluation alone; `licences` looks into the wheels.
{ pkgs, room, ... }:

let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    isList
    map
    match
    tryEval
    ;
  inherit (pkgs) lib;
  inherit (import ../licences.nix { inherit lib; }) unfree;
  systems = [
    "x86_64-linux"
    "aarch64-linux"
  ];
  toList = value: if isList value then value else [ value ];

  packages =
    import ../packages { inherit pkgs; }
    // import ../packages/internal.nix { inherit pkgs; };
  # Folders of files: nothing to run.
  withoutProgram = [
    "completion"
    "corpus"
    "cuda-closed-checks"
    "demo-model"
    "docs"
    "flashinfer"
    "flashinfer-checks"
    "heldout"
    "image"
    "image-cpu"
    "image-cpu-ray"
    "image-ray"
    "kernels"
    "kernels-software"
    "kernels-sparse24"
    "kernels-sparse24-software"
    "provenance"
    "provenance-cpu"
    "provenance-cpu-ray"
    "provenance-ray"
    "sbom"
    "sbom-cpu"
    "sbom-cpu-ray"
    "sbom-ray"
    "vllm-fp4"
    "vllm-fp4-checks"
    "vllm-fp4-software"
    "vllm-wheel-checks"
  ];

  unless = fact: words: if fact then [ ] else [ words ];

  lacks =
    name: program:
    { meta, ... }:
    map (words: "${name}: ${words}") (
      # nixpkgs' manual: no article first, no full stop last.
      unless (
        match "(A |An |The ).*|.*[.]|" (meta.description or "") == null
      ) "no description, or not as nixpkgs wants it"
      ++ unless (toList (meta.license or [ ]) != [ ]) "no licence"
      ++ unless (all (system: elem system (meta.platforms or [ ])) systems) "platforms lack a system"
      ++ unless (meta.sourceProvenance or [ ] != [ ]) "no sourceProvenance"
      ++ unless (program == meta ? mainProgram) "mainProgram, or its line in nix/checks/meta.nix, is wrong"
    );

  # The base with other settings. The stand-in has no name for where it lies.
  baseWith =
    system: config:
    import (pkgs.path or ../debian) {
      inherit system config;
      overlays = [ (import ../../overlays { inherit lib; }).default ];
    };
  allowing = names: { allowUnfreePredicate = package: elem (lib.getName package) names; };
  evaluates = package: (tryEval package.drvPath).success;

  onSystem =
    system:
    let
      none = baseWith system { };
      # PyTorch links Intel's MKL into its CPU build for x86_64, and that alone is not free in the CPU half.
      cpu = baseWith system (allowing (lib.optionals onlyTorch [ "torch" ]));
      cuda = baseWith system (allowing unfree);
      wheels = concatMap (profile: attrValues (cuda.gb10.wheelhouse.wheelsOf { inherit profile; })) [
        "completion"
        "cpu"
        "cuda"
        "cuda-toolkit"
        "docs"
        "lock"
        "ray"
        "report"
        "sbom"
        "test"
      ];
      onlyTorch = system == "x86_64-linux";
    in
    concatMap (wheel: lacks wheel.name false wheel) wheels
    ++ map (words: "${system}: ${words}") (
      unless (evaluates cpu.gb10.serve) "serve needs what is not free, beside torch"
      ++ unless (evaluates cpu.gb10.quality) "quality needs what is not free, beside torch"
      ++ unless (evaluates none.gb10.serve != onlyTorch) "torch for the CPU is free, or is not"
      ++ unless (!evaluates cpu.gb10.cuda-env) "NVIDIA's wheels are let pass unasked"
      ++ unless (!evaluates cpu.gb10.kernels) "NVIDIA's compiler is let pass unasked"
      ++ unless (evaluates cuda.gb10.serve-cuda) "serve-cuda needs more than lib.unfree"
      ++ unless (evaluates cuda.gb10.serve-cuda-12x) "serve-cuda-12x needs more than lib.unfree"
    );

  wrong =
    concatLists (
      map (name: lacks name (!elem name withoutProgram) packages.${name}) (attrNames packages)
    )
    ++ concatMap onSystem systems;

  sites =
    wheels:
    concatStringsSep " " (
      map (wheel: "${wheel}/${pkgs.gb10.python.sitePackages}") (attrValues wheels)
    );
in
{
  meta =
    if wrong == [ ] then
      pkgs.runCommand "gb10-check-meta" { } ''touch "$out"''
    else
      throw "gb10: meta: ${concatStringsSep "; " wrong}";

  licences = room {
    name = "licences";
    tests = [ ../../tests/nix/licences ];
    sources = [
      ../../python/licences.toml
      ../../python/locks
    ];
    variables = {
      # What serves on the CPU, and what is unpacked for other checks anyway.
      GB10_CPU_WHEELS = sites pkgs.gb10.wheels.cpu;
      GB10_MORE_WHEELS = sites (
        pkgs.gb10.wheels.sbom
        // pkgs.gb10.wheels.cuda-toolkit
        // pkgs.gb10.wheels.completion
        // pkgs.gb10.wheels.docs
        // pkgs.gb10.wheels.lock
        // pkgs.gb10.wheels.tools
      );
    };
  };
}
