"""Command line of the recipe: `python -m gb10_lab.testbed {corpus,tokenizer,train,compare,quantize} ...`."""

import importlib
import sys
from collections.abc import Sequence

from gb10.arguments import Parser
from gb10.errors import UserError

_COMMANDS = {
    "corpus": ("gb10_lab.text.corpus", "make the training or the held-out text from pinned packages"),
    "tokenizer": ("gb10_lab.text.tokenizer", "train the tokenizer"),
    "train": ("gb10_lab.training.train", "train the model and its draft head, and calibrate it"),
    "compare": ("gb10_lab.training.compare", "hold a training run against the recorded one"),
    "quantize": ("gb10_lab.testbed.quantize", "make the NVFP4 checkpoint"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 2 for input that the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = Parser(prog="python -m gb10_lab", description="Make the small trained model.")
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, (place, summary) in _COMMANDS.items():
            command = commands.add_parser(name, help=summary, description=summary)
            # Only the module of the command at hand is imported: train needs torch, the others do not all.
            if arguments[:1] == [name]:
                module = importlib.import_module(place)
                module.add_arguments(command)
        status: int = 0
        if arguments:
            options = parser.parse_args(arguments)
            status = importlib.import_module(_COMMANDS[options.command][0]).run(options)
        else:
            parser.print_help()
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return error.exit_code
    return status


if __name__ == "__main__":
    sys.exit(main())
