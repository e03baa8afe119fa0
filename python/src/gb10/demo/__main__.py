"""Command line of the demo maker: `python -m gb10.demo --out DIR [--arch NAME] [--seed N]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gb10.demo.architecture import ARCHITECTURES, QWEN3_NEXT
from gb10.demo.checkpoint import write_checkpoint
from gb10.errors import UserError

_EXIT_USER_ERROR = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the checkpoint that the arguments ask for. Returns the exit code: 0, or 2 for bad input."""
    try:
        options = _parse(argv)
        write_checkpoint(options.out, ARCHITECTURES[options.arch], options.seed)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return _EXIT_USER_ERROR
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m gb10.demo", description="Write a small NVFP4 checkpoint with random weights."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make; must not have files"
    )
    parser.add_argument(
        "--arch", choices=sorted(ARCHITECTURES), default=QWEN3_NEXT.name, help="default: %(default)s"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="0 or more, default: %(default)s")
    return parser.parse_args(argv)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
