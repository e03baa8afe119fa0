"""A process that takes memory in a cgroup, as much as it is told to."""

import subprocess
import sys
from pathlib import Path

from confined.group import Cgroup


class Neighbour:
    """hungry.py in ``group``."""

    def __init__(self, group: Cgroup) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hungry.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=group.enter,
        )

    def take(self, mebibytes: int) -> None:
        """Take so much more, and come back when that is done."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{mebibytes}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def end(self) -> None:
        """Give all of it back."""
        self.process.kill()
        self.process.communicate()
