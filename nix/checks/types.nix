# What mypy knows of the libraries, once for all checks: reading torch alone takes it ten seconds.
{ pkgs }:

pkgs.runCommand "gb10-types" { nativeBuildInputs = [ pkgs.gb10.test-env ]; } ''
  printf 'import numpy\nimport pytest\nimport torch\nimport torch.nn.functional\n' >libraries.py
  # mypy notes when it wrote an entry, and when a file was changed: one second for all, so that two builds are equal.
  touch -d @1 libraries.py
  PYTHONHASHSEED=0 python3 -c \
    'import time; time.time = lambda: 1.0; from mypy.__main__ import console_entry; console_entry()' \
    --config-file ${../../python/pyproject.toml} --cache-dir "$out" libraries.py
''
