# tests/unit: a check for each folder.
{ room, sets, ... }:

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
  unit-checkpoint = unit "checkpoint" (sets.formats ++ sets.gb10 [ "machine" ]);
  unit-machine = unit "machine" (sets.base ++ sets.gb10 [ "machine" ]);
  unit-nvfp4 = unit "nvfp4" (sets.base ++ sets.gb10 [ "nvfp4" ]);
  unit-routing = unit "routing" (sets.base ++ sets.gb10 [ "machine" "routing" ]);
  unit-serve = unit "serve" sets.serve;
  unit-vllm-plugin = unit "vllm_plugin" sets.plugin;
}
