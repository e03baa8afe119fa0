"""``gb10 bench compare A B``."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from gb10.bench import compare, results


def run(
    first: Annotated[Path, Argument(metavar="A", help="what --json wrote")],
    second: Annotated[Path, Argument(metavar="B", help="another one")],
) -> int:
    """Hold two results against each other. A verdict is given only beyond the noise.

    Noise is 10 % of decoding, 20 % of prefill and of the time to the first token, or what the repeats'
    spread says where that is larger. Results of different settings are refused.
    """
    one, other = results.load(first), results.load(second)
    print(compare.render(one, other, (str(first), str(second))), end="")
    return 0
