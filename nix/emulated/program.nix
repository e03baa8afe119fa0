# The program of a plan: steps.py, which runs the steps that the plan has what they need for.
{ pkgs, plan }:

pkgs.writeShellApplication {
  inherit (plan) name;
  text = ''
    exec ${pkgs.gb10.python}/bin/python3 -I ${./steps.py} ${pkgs.writeText "${plan.name}.json" (builtins.toJSON plan)} "$@"
  '';
}
