"""`python -m gb10_lock`."""

import sys

from gb10_lock.cli import main

sys.exit(main())
