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
    testbed
    ;
in
{
  e2e = room {
    name = "e2e";
    tests = [ ../../tests/e2e ];
    sources =
      sets.serve
      ++ sets.lab-base
      ++ sets.lab [
        "quality"
        "record.py"
        "speculative"
      ]
      ++ [ ../../tests/reference ];
    variables = {
      GB10_DEMO_MODEL = demo-model;
      GB10_HELDOUT = "${heldout}/heldout.jsonl";
      GB10_SERVE_COMMAND = pkgs.lib.getExe serve;
      GB10_TESTBED = testbed;
      # vLLM finds the plug-in by the installed package's entry point.
      PYTHONPATH = pythonPath { inherit package; };
    };
  };
}
