"""The argument parser of all commands."""

import argparse
from typing import NoReturn

from gb10.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError for arguments that it cannot take, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError: what is wrong, and the command that lists the options."""
        raise UserError(f"{message} (see: {self.prog} --help)")
