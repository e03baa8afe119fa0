# tests/e2e: the program that people run, and vLLM with the plug-in, on the CPU.
{
  pkgs,
  room,
  sets,
}:

let
  inherit (pkgs.gb10)
    demo-model
    heldout
    package
    pythonPath
    serve
    serve-ray
    testbed
    ;

  file = name: ../../tests/e2e + "/${name}.py";
  e2e = e2eWith serve;
  e2eWith =
    # The program, its files of tests, and what they read beside what all read.
    program: name: files: more:
    room {
      name = "e2e-${name}";
      tests = map file (files ++ [ "conftest" ]);
      sources =
        more
        ++ sets.serve
        ++ sets.lab-base
        # The tests' conftest.py reads it.
        ++ sets.lab [ "quality" ];
      variables = {
        GB10_DEMO_MODEL = demo-model;
        GB10_HELDOUT = "${heldout}/heldout.jsonl";
        GB10_SERVE_COMMAND = pkgs.lib.getExe program;
        GB10_TESTBED = testbed;
        # vLLM finds the plug-in by the installed package's entry point.
        PYTHONPATH = pythonPath { inherit package; };
      };
    };
in
{
  e2e-serve = e2e "serve" [
    "test_confined"
    "test_death"
    "test_demo_model"
    "test_incomplete"
    "test_serve"
  ] [ ../../tests/confined ];
  e2e-nodes = e2e "nodes" [
    "node_pair"
    "test_nodes"
  ] [ ];
  e2e-ray = e2eWith serve-ray "ray" [
    "node_pair"
    "test_ray"
  ] [ ];
  e2e-numerics = e2e "numerics" [
    "test_engine_layers"
    "test_fused_scales"
    "test_numerics"
    "test_numerics_reference"
    "test_tensor_parallel"
    "test_testbed_parity"
  ] [ ../../tests/reference ];
  e2e-families = e2e "families" [ "test_families" ] [ ../../tests/reference ];
  e2e-recipes = e2e "recipes" [ "test_recipes" ] [ ../../tests/reference ];
  e2e-drafts = e2e "drafts" [ "test_speculative" "test_speculative_requests" ] (
    [
      (file "speculative_requests")
      ../../tests/reference
    ]
    ++ sets.lab [
      "record.py"
      "speculative"
    ]
  );
}
