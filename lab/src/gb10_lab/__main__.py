"""``python -m gb10_lab``."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` puts the current folder first, which may hold a checkpoint with a json.py in it.
    del sys.path[0]

from gb10_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
