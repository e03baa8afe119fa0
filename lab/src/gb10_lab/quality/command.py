"""Command line of the quality gate: `python -m gb10_lab quality --model DIR --held-out FILE`."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Option

from gb10.arguments import whole
from gb10.errors import EXIT_FAILED
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


def run(
    model: Annotated[
        Path, Option(metavar="DIR", envvar="GB10_TESTBED", help="the BF16 model with calibration.json")
    ],
    held_out: Annotated[Path, Option(metavar="FILE", envvar="GB10_HELDOUT", help="JSON lines of documents")],
    tokens: Annotated[int, Option(parser=whole(2), metavar="N", help="length of the text")] = TOKENS,
    window: Annotated[int, Option(parser=whole(2), metavar="N", help="tokens in one pass")] = WINDOW,
    seed: Annotated[int, Option(metavar="N", help="chooses the text")] = SEED,
    out: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help=f"where {_PLOT} and {_FIGURES} go; default: {_DEFAULT_OUT}, "
            "or nowhere with --check or --record",
        ),
    ] = None,
    record: Annotated[
        Path | None, Option(metavar="FILE", help="write the figures as the expectation")
    ] = None,
    check: Annotated[
        Path | None, Option(metavar="FILE", help="compare with an expectation; 1 when it differs")
    ] = None,
) -> int:
    """Measure what NVFP4, FP8 and 2:4 do to the answers of the testbed model, on held-out text."""
    recorded = expectation.load(check) if check else None
    out = out or (None if check or record else _DEFAULT_OUT)
    if out:
        report.need_plots()
    began = time.monotonic()
    # The matrices are small: threads would only wait for each other.
    with one_thread():
        tokenizer = read_tokenizer(model / "tokenizer.json")
        text = sample(held_out, tokenizer, tokens=tokens, window=window, seed=seed)
        arch = checkpoint.read_architecture(model)
        tensors = checkpoint.read_tensors(model)
        amax = checkpoint.read_amax(model / checkpoint.CALIBRATION)
        variants = list(make_variants(tensors, amax, arch.experts_per_token))
        figures = evaluate(arch, variants, text.tokens)
    names = {variant.key: variant.name for variant in variants}
    print(report.table(names, figures))
    print(_summary(text, variants, figures, time.monotonic() - began))
    source = expectation.Source(
        tokens=text.tokens.numel(),
        window=window,
        seed=seed,
        model_sha256=sha256(model / checkpoint.WEIGHTS),
        calibration_sha256=sha256(model / checkpoint.CALIBRATION),
        text_sha256=text.sha256,
    )
    if out:
        _write_out(out, source, names, figures)
    if record:
        write_json(record, expectation.content(source, figures))
    if recorded is None:
        return 0
    different = expectation.differences(recorded, source, figures)
    for line in different:
        print(f"not as recorded: {line}", file=sys.stderr)
    if not different:
        print(f"as recorded in {check}")
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
