# What mypy knows of the libraries, once for all checks: reading torch alone takes it ten seconds.
{ pkgs }:

pkgs.runCommand "gb10-types" { nativeBuildInputs = [ pkgs.gb10.test-env ]; } ''
  printf 'import numpy\nimport pytest\nimport torch\nimport torch.nn.functional\n' >libraries.py
  mypy --config-file ${../../python/pyproject.toml} --cache-dir "$out" libraries.py
''
