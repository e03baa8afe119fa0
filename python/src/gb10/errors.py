"""Errors that a user can mend."""

EXIT_USAGE = 2
"""Exit status for bad input, as argparse and most shells use it."""

EXIT_FAILED = 1
"""Exit status when the work itself failed (vLLM died, the server stopped)."""


EXIT_MEMORY = 75
"""Exit status when the server was ended before memory ran out: EX_TEMPFAIL of sysexits.h, "try again"."""


class UserError(Exception):
    """Input that the user can mend.

    The message is one line: what is wrong, and what to do. The command line prints it as
    ``gb10: error: MESSAGE`` and exits with status 2; no traceback is shown.
    """

    exit_code = EXIT_USAGE


class ServerFailed(UserError):
    """vLLM started and then failed. Printed like a ``UserError``; exit status 1."""

    exit_code = EXIT_FAILED


class MemoryShort(ServerFailed):
    """vLLM was ended before memory ran out; with more of it, the same start may work. Exit status 75."""

    exit_code = EXIT_MEMORY
