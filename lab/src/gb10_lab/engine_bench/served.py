"""Command line: `python -m gb10_lab quality-served`: what the engine answers against the BF16 model.

The quality gate (`gb10_lab.quality`) computes what a format costs with the testbed's own forward pass in
float32. This serves the quantised checkpoint with one configuration of vLLM, on the gate's own text, and
holds the mean KL against the gate's: by how much kernels and BF16 activations move it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from typer import Option

from gb10.arguments import json_object, whole
from gb10.errors import EXIT_FAILED, UserError
from gb10.files import write_json
from gb10_lab.engine_bench import configurations
from gb10_lab.engine_bench.configurations import Configuration
from gb10_lab.quality import expectation
from gb10_lab.quality.figures import Figures, Sums, summarise
from gb10_lab.quality.text import Sample, sample
from gb10_lab.quality.variants import REFERENCE
from gb10_lab.testbed import checkpoint
from gb10_lab.text.tokenizer import read_tokenizer

PIECES = {"one piece": 0, "pieces of 16": 16}
"""How prompts are computed: the kernels for many tokens, and those of decoding."""
LIMIT = 0.10
"""By how much of the gate's KL the served one may differ."""
SAME_REFERENCE = 1e-4
"""By how much of the perplexity the BF16 model computed here may be off the gate's: rounding does less."""
_TELL_AFTER = 8
"""Windows between two lines of progress."""
_ROWS = {
    "keep": ("shipped",),
    "fp8": ("fp8-dense-head",),
    "nvfp4": ("nvfp4-dense-head-search", "nvfp4-dense-head"),
}


def row_of(configuration: Configuration, recorded: Mapping[str, Any]) -> str | None:
    """The gate's row for a configuration, None where it has none: for stock FP8, for a mixture of formats."""
    chosen = {configuration.environment.get(name, "keep") for name in ("GB10_DENSE", "GB10_HEAD")}
    if len(chosen) > 1 or configuration.arguments.get("quantization_config"):
        return None
    return next((key for key in _ROWS[chosen.pop()] if key in recorded["rows"]), None)


def run(
    config: Annotated[str, Option(metavar="NAME", help=f"one of {', '.join(configurations.CONFIGURATIONS)}")],
    model: Annotated[
        Path, Option(metavar="DIR", envvar="GB10_DEMO_MODEL", help="the quantised checkpoint, to be served")
    ],
    testbed: Annotated[
        Path, Option(metavar="DIR", envvar="GB10_TESTBED", help="the BF16 model, with expectation.json")
    ],
    held_out: Annotated[Path, Option(metavar="FILE", envvar="GB10_HELDOUT", help="JSON lines of documents")],
    out: Annotated[Path | None, Option(metavar="FOLDER", help="quality-NAME.json goes there")] = None,
    windows: Annotated[
        int | None, Option(parser=whole(1), metavar="N", help="the first N of the gate's; default: all")
    ] = None,
    engine: Annotated[str, Option(metavar="JSON", help="more arguments of vllm.LLM; they win")] = "{}",
    limit: Annotated[
        float, Option(metavar="SECONDS", help="begin no window after this time; the exit status is 1 then")
    ] = math.inf,
) -> int:
    """Serve the trained model with one configuration and measure its KL to the BF16 model, as the gate does.

    The exit status is 1 when a KL is not within 10 % of the gate's, or not all windows were measured.
    """
    began = time.monotonic()
    chosen, extra = configurations.choose(config), json_object("--engine", engine)
    recorded = expectation.load(testbed / "expectation.json")
    row = row_of(chosen, recorded)
    text = sample(
        held_out,
        read_tokenizer(testbed / "tokenizer.json"),
        tokens=recorded["tokens"],
        window=recorded["window"],
        seed=recorded["seed"],
    )
    if text.sha256 != recorded["text_sha256"]:
        raise UserError(f"{held_out} does not give the text of {testbed / 'expectation.json'}")
    wanted = windows or text.tokens.shape[0]
    gate = recorded["rows"][row]["kl"] if row and wanted == text.tokens.shape[0] else None
    within = False
    for done, figures in _measure(chosen, model, testbed, text, wanted, extra):
        served = {name: figures[name] for name in PIECES}
        lines, near = compare(config, served, gate, row)
        off = _reference_off(figures[REFERENCE], recorded) if done == text.tokens.shape[0] else None
        within = done == wanted and near and off is None
        seconds = time.monotonic() - began
        if out is not None:
            content = {
                "configuration": dataclasses.asdict(chosen),
                "windows": {"measured": done, "wanted": wanted},
                "seconds": round(seconds, 1),
                "gate": {"row": row, "kl": gate, "reference": off or "as recorded"},
                "served": {name: dataclasses.asdict(each) for name, each in served.items()},
            }
            write_json(out / f"quality-{config}.json", content)
        print(f"{seconds:.1f} s: {done} of {wanted} windows", flush=True)
        if done < wanted and seconds > limit:
            print(f"{config}: no time for all windows", file=sys.stderr)
            break
    print("\n".join(lines))
    if off is not None:
        print(f"{config}: {off}", file=sys.stderr)
    if not within:
        print(f"{config}: not shown to be within {LIMIT:.0%} of the gate", file=sys.stderr)
    return 0 if within else EXIT_FAILED


def _reference_off(reference: Figures, recorded: Mapping[str, Any]) -> str | None:
    """What is wrong with the BF16 model as computed here, on the gate's whole text; None: nothing."""
    gate = recorded["rows"][REFERENCE]["perplexity"]
    if abs(reference.perplexity / gate - 1) <= SAME_REFERENCE:
        return None
    return f"the BF16 model has perplexity {reference.perplexity:.5f} here, {gate:.5f} in the gate"


def compare(
    name: str, figures: Mapping[str, Figures], gate: float | None, row: str | None
) -> tuple[list[str], bool]:
    """Lines of a table, and whether each KL is near enough to the gate's (None: there is none)."""
    lines = [
        f"{name}, gate's row: {row or 'none'}",
        f"{'prompts in':<16}{'KL':>10}{'gate':>10}{'x':>7}{'top-1':>8}",
    ]
    within = True
    for how, each in figures.items():
        cells = f"{how:<16}{each.kl:>10.5f}"
        if gate is None:
            cells += f"{'-':>10}{'-':>7}"
        else:
            cells += f"{gate:>10.5f}{each.kl / gate:>7.3f}"
            # A NaN is within nothing.
            within &= abs(each.kl / gate - 1) <= LIMIT
        lines.append(f"{cells}{each.top1:>8.2%}   perplexity {each.perplexity:.4f}")
    return lines, within


def _measure(
    chosen: Configuration, model: Path, testbed: Path, text: Sample, windows: int, extra: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Figures]]]:
    """After every few windows: how many were measured, and the figures of those, the BF16 model's too."""
    from gb10_lab.engine_bench import session

    length = text.tokens.shape[1]
    sizes = {
        "max_model_len": length + 8,
        "max_num_batched_tokens": length + 8,
        "kv_cache_memory_bytes": 1 << 29,
    }
    session.prepare(chosen)
    engine = session.Session(model, chosen, {"load_format": "auto", **sizes, **extra})
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    print(f"the engine is ready; the BF16 model runs on {device.type}", flush=True)
    # vLLM leaves torch one thread, and one takes 3 s for a window.
    exact = checkpoint.load(testbed).to(device)
    sums = {name: Sums.zeros(windows) for name in (REFERENCE, *PIECES)}
    for window in range(windows):
        ids = text.tokens[window]
        inputs, targets = ids[None, :-1].to(device), ids[1:].to(device)
        with torch.inference_mode(), _full_float32():
            reference = exact.logits(exact(inputs))[0].double().log_softmax(-1)
        sums[REFERENCE].add(window, reference, reference, targets)
        for name, piece in PIECES.items():
            logits = engine.prompt_logits(ids.tolist(), piece)
            sums[name].add(window, logits.double().log_softmax(-1).to(device), reference, targets)
        done = window + 1
        if done % _TELL_AFTER == 0 or done == windows:
            measured = {name: each.first(done) for name, each in sums.items()}
            yield done, summarise(measured, REFERENCE, length - 1, dict.fromkeys(sums, 0))


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever vLLM has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
