# An environment of wheels, laid out as a virtual environment of `python`.
{
  pkgs,
  python,
  target,
}:

{
  name,
  # Derivations with files below ${python.sitePackages} and bin.
  packages,
  # Files that two wheels may both ship: paths in site-packages.
  allowedDuplicates ? [ ],
  # Whether the commands in bin ignore the user's PYTHONPATH. Its python3 is the user's own, who decides.
  isolated ? false,
  # Its description, and what else it says of itself.
  meta ? { },
}:

let
  # What its commands run with; `python` lays it out.
  interpreter = target.gb10.python;
in
pkgs.runCommand name
  {
    nativeBuildInputs = [ python ];
    plan = builtins.toJSON {
      packages = map (package: "${package}") packages;
      inherit allowedDuplicates isolated;
      inherit (interpreter) sitePackages interpreter pythonVersion;
    };
    passAsFile = [ "plan" ];
    passthru = {
      python = interpreter;
      inherit (interpreter) sitePackages;
    };
    meta = {
      mainProgram = "python3";
    }
    // meta;
  }
  ''
    python3 ${./environment.py} "$planPath" "$out"
  ''
