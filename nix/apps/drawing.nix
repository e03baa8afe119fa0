# The CPU environment with what draws plots, for the commands that have both a client of vLLM's and a picture.
{ pkgs }:

pkgs.gb10.environment {
  name = "gb10-drawing-env";
  description = "vLLM for the CPU with gb10 and what draws plots, as a virtual environment";
  wheels = pkgs.gb10.wheels.report // pkgs.gb10.wheels.cpu;
  extra = [ pkgs.gb10.package ];
  isolated = true;
}
