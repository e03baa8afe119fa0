"""A process that takes memory: ``hungry.py``. Each line "N" on its input takes N MiB more, and is answered.

It takes them in steps of 4 MiB with a pause of 10 ms: 400 MiB a second.
"""

import sys
import time

STEP = 4 << 20

held = []
for line in sys.stdin:
    for _ in range((int(line) << 20) // STEP):
        held.append(b"x" * STEP)
        time.sleep(0.01)
    print(len(held) * STEP >> 20, flush=True)
