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
    serve
    testbed
    ;
in
{
  e2e = room {
    name = "e2e";
    tests = [ ../../tests/e2e ];
    sources =
      sets.lab-base
      ++ sets.lab [
        "quality"
        "record.py"
        "speculative"
      ]
      ++ [ ../../tests/reference ];
    # vLLM finds the plug-in by the installed package's entry point.
    environment = pkgs.gb10.environment {
      name = "gb10-e2e-env";
      wheels = pkgs.gb10.wheels.tools;
      extra = [ pkgs.gb10.package ];
    };
    variables = {
      GB10_DEMO_MODEL = demo-model;
      GB10_HELDOUT = "${heldout}/heldout.jsonl";
      GB10_SERVE_COMMAND = pkgs.lib.getExe serve;
      GB10_TESTBED = testbed;
    };
  };
}
