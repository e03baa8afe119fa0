"""The one error that the lock tool shows to its user."""


class LockError(Exception):
    """Something the user must know or change: one line, exit code 2, no traceback."""
