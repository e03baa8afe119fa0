# tests/lab: a check for each folder, and the quality figures.
{
  pkgs,
  room,
  sets,
}:

let
  inherit (pkgs.gb10) heldout lab-env testbed;

  lab =
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
  lab-cli = lab "cli" (sets.plugin ++ sets.gb10 [ "kernels" ] ++ [ ../../lab/src ]);
  lab-kernel-bench = lab "kernel_bench" (
    sets.gb10 [ "kernels" ]
    ++ sets.lab [
      "kernel_bench"
      "record.py"
    ]
    ++ [ ../../lab/floors.md ]
  );
  lab-quality = lab "quality" (sets.lab [ "quality" ] ++ [ reference ]);
  lab-record = lab "record" (sets.lab [ "record.py" ] ++ [ ../../lab/results ]);
  lab-speculative = lab "speculative" (
    sets.plugin
    ++ sets.lab [
      "record.py"
      "speculative"
    ]
  );
  lab-testbed = lab "testbed" [ reference ];
  lab-text = lab "text" [ ../../python/locks ../../models/testbed/corpus.json ];
  lab-training = lab "training" (
    sets.lab [
      "record.py"
      "training"
    ]
  );

  # The quality figures of models/testbed/expectation.json: fails when a figure is not the recorded one.
  quality = pkgs.runCommand "gb10-check-quality" { nativeBuildInputs = [ lab-env ]; } ''
    export HOME=$PWD
    python3 -m gb10_lab quality --model ${testbed} --held-out ${heldout}/heldout.jsonl \
      --check ${testbed}/expectation.json --out "$out"
  '';
}
