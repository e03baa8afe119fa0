# tests/lab: a check for each folder, and the quality figures.
{
  pkgs,
  room,
  sets,
}:

let
  inherit (pkgs.gb10)
    heldout
    pythonPath
    test-env
    testbed
    ;

  tests =
    folder: sources:
    room {
      name = "lab-${folder}";
      tests = [ (../../tests/lab + "/${folder}") ];
      sources = sets.formats ++ sets.lab-base ++ shared ++ sources;
      # The trained model and the text that it is measured on.
      variables = {
        GB10_TESTBED = testbed;
        GB10_HELDOUT = "${heldout}/heldout.jsonl";
      };
    };
  shared = [
    ../../tests/lab/conftest.py
    ../../tests/lab/small_model.py
  ];
  reference = ../../tests/reference;
in
{
  # The tests run the sources; this is what `quality` and `speculative` run: all its modules are there, with what they import.
  lab-env-imports = pkgs.runCommand "gb10-check-lab-env-imports" { } ''
    export HOME=$PWD
    ${pkgs.gb10.lab-env}/bin/python3 -c '
    import importlib, pkgutil
    import gb10, gb10_lab
    for package in (gb10, gb10_lab):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            # Ray is in environments of its own, and vLLM has no executor for it without.
            if module.name.endswith(("__main__", "vllm_plugin.cpu.ray")):
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                # The CPU profile has none.
                if error.name not in ("triton", "triton.language"):
                    raise
            print(module.name)
    ' 2>&1 | tee "$out"
    for program in ${pkgs.gb10.quality}/bin/quality ${pkgs.gb10.speculative}/bin/speculative; do "$program" --help; done
  '';

  lab-cli = tests "cli" (sets.plugin ++ sets.gb10 [ "kernels" ] ++ [ ../../lab/src ]);
  lab-engine-bench = tests "engine_bench" (
    sets.lab [
      "engine_bench"
      "kernel_bench"
      "quality"
      "record.py"
    ]
    ++ [ ../../lab/gpu/ended.sh ]
  );
  lab-kernel-bench = tests "kernel_bench" (
    sets.gb10 [ "kernels" ]
    ++ sets.lab [
      "kernel_bench"
      "record.py"
    ]
    ++ [ ../../lab/floors.md ]
  );
  lab-quality = tests "quality" (sets.lab [ "quality" ] ++ [ reference ]);
  lab-record = tests "record" (sets.lab [ "record.py" ] ++ [ ../../lab/results ]);
  lab-speculative = tests "speculative" (
    sets.plugin
    ++ sets.lab [
      "quality"
      "record.py"
      "speculative"
    ]
  );
  lab-testbed = tests "testbed" [ reference ];
  lab-text = tests "text" [ ../../python/locks ../../models/testbed/corpus.json ];
  lab-training = tests "training" (
    sets.lab [
      "record.py"
      "training"
    ]
  );
  lab-two-nodes = tests "two_nodes" (
    sets.lab [
      "record.py"
      "two_nodes"
    ]
    ++ [ ../../lab/cluster ]
  );

  # The quality figures of models/testbed/expectation.json: fails when a figure is not the recorded one.
  quality = pkgs.runCommand "gb10-check-quality" { nativeBuildInputs = [ test-env ]; } ''
    export GOMP_SPINCOUNT=0 # as in room.nix
    export HOME=$PWD PYTHONPATH=${pythonPath { inherit (pkgs.gb10) lab library; }}
    python3 -m gb10_lab quality --model ${testbed} --held-out ${heldout}/heldout.jsonl \
      --check ${testbed}/expectation.json --out "$out"
  '';
}
