"""``gb10 bench``: of a server, of two results, or of two servers in turns."""

import shlex
import sys
from collections.abc import Sequence

from gb10 import arguments
from gb10.arguments import Command

_ABOUT = "Measure a server: gb10 bench URL|PORT [OPTION…]; compare results, or two servers in turns."
_INTERRUPTED = 130
_MEASURE = "measure"
_COMMANDS = {
    _MEASURE: Command("gb10.bench.measure_command:run", "Measure a running server; URL|PORT alone is this."),
    "compare": Command("gb10.bench.compare_command:run", "Hold two results against each other."),
    "report": Command("gb10.bench.report_command:run", "Make reports of a result: HTML, other formats."),
    "run": Command("gb10.bench.against_command:run", "Start two servers in turns, measure, compare."),
}


def run(argv: Sequence[str]) -> int:
    """``gb10 bench``: what is no command's name begins the arguments of ``measure``."""
    words = list(argv)
    if words and words[0] not in _COMMANDS and words[0] not in ("-h", "--help", "help"):
        words.insert(0, _MEASURE)
    if words[:1] == ["run"] and "--" in words:
        # Another server's options are read by nobody here.
        at = words.index("--")
        words[at:] = ["--with", shlex.join(words[at + 1 :])]
    status = arguments.run("gb10 bench", _ABOUT, _COMMANDS, words)
    if status == _INTERRUPTED:
        print("gb10: interrupted; what was measured is not kept", file=sys.stderr)
    return status
