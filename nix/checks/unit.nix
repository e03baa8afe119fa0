# tests/unit: a check for each folder.
{
  pkgs,
  room,
  sets,
}:

let
  unit =
    folder: sources:
    room {
      name = "unit-${folder}";
      tests = [ (../../tests/unit + "/${folder}") ];
      inherit sources;
    };
in
{
  unit-audit = room {
    name = "unit-audit";
    tests = [
      ../../tests/hub.py
      ../../tests/unit/audit
    ];
    sources = sets.serve ++ sets.gb10 [ "predict" ];
  };
  unit-bench = unit "bench" (
    sets.serve
    ++ sets.gb10 [
      "bench"
      "predict"
    ]
    ++ [ ../../tests/unit/audit/published.py ]
  );
  unit-checkpoint = unit "checkpoint" (sets.formats ++ sets.gb10 [ "machine" ]);
  unit-cli = unit "cli" (
    sets.serve
    ++ sets.gb10 [
      "bench"
      "predict"
    ]
  );
  unit-cluster = unit "cluster" sets.serve;
  unit-dependencies = unit "dependencies" [
    ../../lab/pyproject.toml
    ../../lab/src
    ../../python/profiles.toml
    ../../python/src
  ];
  unit-doctor = room {
    name = "unit-doctor";
    tests = [ ../../tests/unit/doctor ];
    sources = sets.serve ++ [ ../../docs/doctor.md ];
    # What the driver compiles at run time is assembled here.
    variables.GB10_PTXAS = "${pkgs.gb10.cuda-toolkit}/bin/ptxas";
  };
  unit-download = room {
    name = "unit-download";
    tests = [
      ../../tests/hub.py
      ../../tests/unit/download
    ];
    # The audit asks the same hub.
    sources = sets.serve ++ sets.gb10 [ "predict" ];
  };
  unit-machine = unit "machine" (sets.base ++ sets.gb10 [ "machine" ]);
  unit-metrics = room {
    name = "unit-metrics";
    tests = [
      ../../tests/unit/metrics
      # Run by hand, with a real Prometheus: looked at here.
      ../../tests/nix/metrics/machine.py
    ];
    sources = sets.serve ++ [
      ../../docs/metrics
      ../../docs/metrics.md
    ];
  };
  unit-nvfp4 = unit "nvfp4" (
    sets.base
    ++ sets.gb10 [
      "fp8.py"
      "nvfp4"
    ]
  );
  unit-predict = unit "predict" (
    sets.serve
    ++ sets.gb10 [ "predict" ]
    ++ sets.lab [
      "__init__.py"
      "predict"
      "py.typed"
    ]
    ++ [
      ../../docs/predict.md
      ../../docs/predict.svg
      ../../lab/results/2026-11-27-h200-engine.json
      ../../tests/unit/audit/published.py
    ]
  );
  unit-recipes = unit "recipes" (
    sets.serve ++ sets.gb10 [ "predict" ] ++ [ ../../docs/recipes.md ]
  );
  unit-routing = unit "routing" (
    sets.plugin
    ++ sets.gb10 [
      "cli.py"
      "routing"
    ]
    ++ [ ../../nix/flashinfer/modules.toml ]
  );
  unit-serve = unit "serve" (
    sets.serve
    ++ [
      ../../docs/configuration.md
      ../../tests/confined
    ]
  );
  # What of the plug-in needs Ray beside vLLM.
  unit-ray = room {
    name = "unit-ray";
    tests = [
      ../../tests/unit/vllm_plugin/test_compat.py
      ../../tests/unit/vllm_plugin/test_ray.py
    ];
    sources = sets.plugin;
    variables.PYTHONPATH = pkgs.gb10.pythonPath pkgs.gb10.wheels.ray;
    lint = false;
  };
  unit-vllm-plugin = unit "vllm_plugin" (sets.plugin ++ [ ../../tests/reference ]);
}
