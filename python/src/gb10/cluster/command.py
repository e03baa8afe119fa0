"""``gb10 cluster plan`` and ``gb10 cluster up``."""

from collections.abc import Sequence

from gb10 import arguments
from gb10.arguments import Command

_ABOUT = "One engine on several hosts, over ssh: plan|up HOST HOST [-- MODEL OPTION OF gb10 serve…]"
_COMMANDS = {
    "plan": Command("gb10.cluster.plan_command:run", "Ask the hosts and print what each would run."),
    "up": Command("gb10.cluster.up_command:run", "Check the hosts, start all, and end all together."),
}


def _joined(words: Sequence[str]) -> list[str]:
    """``--env A=1 HOST`` as ``--env=A=1 HOST``: what follows is no second value (`arguments.spread`)."""
    result: list[str] = []
    for word in words:
        if result[-1:] == ["--env"]:
            result[-1] += f"={word}"
        else:
            result.append(word)
    return result


def run(argv: Sequence[str]) -> int:
    """``gb10 cluster``: what comes after ``--`` is not read here; a second one keeps where it began."""
    at = argv.index("--") if "--" in argv else len(argv)
    rest = ["--", *argv[at:]] if argv[at:] else []
    return arguments.run("gb10 cluster", _ABOUT, _COMMANDS, [*_joined(argv[:at]), *rest])
