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
    filter
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

  packages = import ../packages { inherit pkgs; } // import ../packages/internal.nix { inherit pkgs; };
  # Folders of files: nothing to run.
  withoutProgram = [
    "corpus"
    "demo-model"
    "flashinfer"
    "flashinfer-checks"
    "heldout"
    "kernels"
    "kernels-software"
    "kernels-sparse24"
    "kernels-sparse24-software"
    "vllm-fp4"
    "vllm-fp4-checks"
    "vllm-fp4-software"
    "vllm-wheel-checks"
  ];

  lacks =
    name: program:
    { meta, ... }:
    map (what: "${name}: ${what}") (
      filter (what: what != null) [
        # nixpkgs' manual: no article first, no full stop last.
        (
          if match "(A |An |The ).*|.*[.]|" (meta.description or "") != null then
            "no description, or not as nixpkgs wants it"
          else
            null
        )
        (if toList (meta.license or [ ]) == [ ] then "no licence" else null)
        (if all (system: elem system (meta.platforms or [ ])) systems then null else "platforms lack a system")
        (if meta.sourceProvenance or [ ] == [ ] then "no sourceProvenance" else null)
        (if program == meta ? mainProgram then null else "mainProgram, or nix/checks/meta.nix, is wrong")
      ]
    );

  # The base with other settings.
  baseWith =
    system: config:
    import pkgs.path {
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
      cpu = baseWith system (allowing (if system == "x86_64-linux" then [ "torch" ] else [ ]));
      cuda = baseWith system (allowing unfree);
      wheels = concatMap (profile: attrValues (cuda.gb10.wheelhouse.wheelsOf { inherit profile; })) [
        "cpu"
        "cuda"
        "cuda-toolkit"
        "lock"
        "report"
        "test"
      ];
      is = what: fact: if fact then [ ] else [ "${system}: ${what}" ];
    in
    concatMap (wheel: lacks wheel.name false wheel) wheels
    ++ is "the CPU half needs what is not free, beside torch" (evaluates cpu.gb10.cpu-env)
    ++ is "quality needs what is not free, beside torch" (evaluates cpu.gb10.quality)
    ++ is "the CPU half is free, or is not" (evaluates none.gb10.cpu-env == (system != "x86_64-linux"))
    ++ is "NVIDIA's wheels are let pass unasked" (!evaluates cpu.gb10.cuda-env)
    ++ is "NVIDIA's compiler is let pass unasked" (!evaluates cpu.gb10.kernels)
    ++ is "serve-cuda needs more than `lib.unfree`" (evaluates cuda.gb10.serve-cuda)
    ++ is "serve-cuda-12x needs more than `lib.unfree`" (evaluates cuda.gb10.serve-cuda-12x);

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
        pkgs.gb10.wheels.cuda-toolkit // pkgs.gb10.wheels.lock // pkgs.gb10.wheels.tools
      );
    };
  };
}
