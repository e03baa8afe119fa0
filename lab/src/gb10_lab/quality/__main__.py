"""Command line of the quality gate: `python -m gb10_lab.quality --model DIR --held-out FILE`."""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gb10.arguments import Parser
from gb10.errors import EXIT_FAILED, UserError
from gb10.files import replacing, sha256, write_json

from gb10_lab.quality import expectation, report
from gb10_lab.quality.evaluate import cores, evaluate, one_thread
from gb10_lab.quality.figures import Figures
from gb10_lab.quality.text import Sample, sample
from gb10_lab.quality.variants import REFERENCE, Variant, make_variants
from gb10_lab.testbed import checkpoint
from gb10_lab.text.tokenizer import read_tokenizer

TOKENS = 40960
WINDOW = 1024
SEED = 0

_DEFAULT_OUT = Path("gb10-quality")
_PLOT = "quality.svg"
_FIGURES = "quality.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code is 0, 1 when a check finds a difference, 2 for bad input."""
    try:
        options = _parse(argv)
        # The matrices are small: threads would only wait for each other.
        with one_thread():
            return _run(options)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    recorded = expectation.load(options.check) if options.check else None
    out = options.out or (None if options.check or options.record else _DEFAULT_OUT)
    if out:
        report.need_plots()
    began = time.monotonic()
    text = sample(
        options.held_out,
        read_tokenizer(options.model / "tokenizer.json"),
        tokens=options.tokens,
        window=options.window,
        seed=options.seed,
    )
    arch = checkpoint.read_architecture(options.model)
    tensors = checkpoint.read_tensors(options.model)
    variants = list(
        make_variants(
            tensors, checkpoint.read_amax(options.model / checkpoint.CALIBRATION), arch.experts_per_token
        )
    )
    figures = evaluate(arch, variants, text.tokens)
    names = {variant.key: variant.name for variant in variants}
    print(report.table(names, figures))
    print(_summary(text, variants, figures, time.monotonic() - began))
    source = expectation.Source(
        tokens=text.tokens.numel(),
        window=options.window,
        seed=options.seed,
        model_sha256=sha256(options.model / checkpoint.WEIGHTS),
        calibration_sha256=sha256(options.model / checkpoint.CALIBRATION),
        text_sha256=text.sha256,
    )
    if out:
        _write_out(out, source, names, figures)
    if options.record:
        write_json(options.record, expectation.content(source, figures))
    if recorded is None:
        return 0
    different = expectation.differences(recorded, source, figures)
    for line in different:
        print(f"not as recorded: {line}", file=sys.stderr)
    if not different:
        print(f"as recorded in {options.check}")
    return EXIT_FAILED if different else 0


def _summary(text: Sample, variants: Sequence[Variant], figures: dict[str, Figures], seconds: float) -> str:
    bits = math.log2(figures[REFERENCE].perplexity) * text.predictions / text.bytes
    lines = [
        f"2:4 sparse experts drop {variant.dropped.share_of_nonzeros_dropped:.1%} of the non-zero weights, "
        f"{variant.dropped.share_of_energy_dropped:.2%} of the energy"
        for variant in variants
        if variant.dropped
    ]
    lines += [
        f"{text.tokens.numel()} tokens of {text.documents} held-out documents, "
        f"windows of {text.tokens.shape[1]}; BF16: {bits:.3f} bits a byte",
        f"{seconds:.0f} s on {cores()} cores",
    ]
    return "\n".join(lines)


def _write_out(
    folder: Path, source: expectation.Source, names: dict[str, str], figures: dict[str, Figures]
) -> None:
    with replacing(folder / _PLOT) as part:
        report.plot(
            names, figures, part, "svg", "What a number format costs: the testbed model, held-out text"
        )
    write_json(folder / _FIGURES, expectation.content(source, figures))
    print(f"wrote {folder / _PLOT} and {folder / _FIGURES}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m gb10_lab.quality",
        description="What NVFP4, FP8 and 2:4 do to the answers of the testbed model, on held-out text.",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=os.environ.get("GB10_TESTBED"),
        metavar="DIR",
        help="the BF16 model with calibration.json (default: $GB10_TESTBED)",
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        default=os.environ.get("GB10_HELDOUT"),
        metavar="FILE",
        help="JSON lines of documents (default: $GB10_HELDOUT)",
    )
    parser.add_argument("--tokens", type=_count, default=TOKENS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--window", type=_count, default=WINDOW, metavar="N", help="tokens in one pass, default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, metavar="N", help="chooses the text, default: %(default)s"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where {_PLOT} and {_FIGURES} go (default: {_DEFAULT_OUT}; nowhere with --check or --record)",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as the expectation")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="compare with an expectation; 1 when it differs"
    )
    options = parser.parse_args(argv)
    for name, variable in (("model", "GB10_TESTBED"), ("held_out", "GB10_HELDOUT")):
        if getattr(options, name) is None:
            parser.error(f"--{name.replace('_', '-')} is missing, and {variable} is not set")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 2 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
