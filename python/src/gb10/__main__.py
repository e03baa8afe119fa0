"""``python -m gb10``."""

import sys

from gb10.cli import main

if __name__ == "__main__":
    sys.exit(main())
