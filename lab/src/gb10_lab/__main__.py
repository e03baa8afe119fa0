"""``python -m gb10_lab``."""

import sys

from gb10_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
