"""What the benchmark leaves behind: results.json, table.txt, roofline.png; and the floors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gb10.files import write_json
from gb10_lab.kernel_bench.figures import GB10_LAUNCH_US, GB10_READ_GBPS, floor_us, predict_gb10_us
from gb10_lab.kernel_bench.shapes import (
    DENSE,
    GDN,
    MOE,
    STREAMING,
    STREAMING_DENSE,
    STREAMING_MOE,
    STREAMING_TOKENS,
    TOKENS,
    Dense,
    Gdn,
    Moe,
    activation_bytes,
    expected_distinct,
    fp8_bytes,
    gdn_bytes,
    moe_bytes,
    nvfp4_bytes,
    sparse24_bytes,
)

if TYPE_CHECKING:
    from gb10_lab.kernel_bench.bandwidth import Bandwidth
    from gb10_lab.kernel_bench.chain import ChainEntry
    from gb10_lab.kernel_bench.suite import Entry

SCHEMA = 1
WIDTH = 100
NOMINAL_FRACTION = 0.88
"""Share of the read bandwidth that predictions take for a kernel whose streaming shape was not measured."""
CHANGE = 0.03
"""Relative change of a time that is told."""
STOCK = ("marlin", "bf16", "fp8", "vllm", "dense", "copy")


@dataclass(frozen=True)
class Prediction:
    """What an entry should take on a GB10."""

    kernel: str
    model: str
    shape: str
    tokens: int
    bytes_moved: int
    launches: int
    fraction: float
    microseconds: float


@dataclass(frozen=True)
class Results:
    """Everything of one run; ``document`` is the file's form."""

    device: dict[str, Any]
    commit: str
    date: str
    command: str
    quick: bool
    seconds: float
    stock: str
    bandwidth: Bandwidth
    entries: list[Entry]
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chain: list[ChainEntry] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The whole, with the predictions for a GB10, for JSON."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "gb10": {
                "read_gbps": GB10_READ_GBPS,
                "launch_us": GB10_LAUNCH_US,
                "predictions": [asdict(each) for each in predictions(self.entries)],
            },
        }

    def as_text(self) -> str:
        """The tables, at most 100 columns wide."""
        b = self.bandwidth
        head = [
            "{name}, driver {driver}, torch {torch}".format(**self.device) + f", {self.stock}",
            f"{self.date}, commit {self.commit}{', quick' if self.quick else ''}",
            f"read {b.read_gbps:.0f} GB/s, copy {b.copy_gbps:.0f} GB/s, clear {b.clear_gbps:.0f} GB/s, "
            f"idle kernel in a graph {b.launch_us:.2f} us",
            "us: median, p10, p90; read%: GB/s over read bandwidth; floor: us at read bandwidth + launches",
            "last columns: time of the stock path over ours; '!': two timings of ours did not agree",
        ]
        parts = head
        if self.entries:
            parts += [
                "",
                *table(self.entries),
                "",
                *apart_table(self.entries),
                "",
                *prediction_table(self.entries),
            ]
        if self.chain:
            parts += ["", *chain_table(self.chain)]
        if self.changes:
            parts += ["", "Against the other results", *(f"- {line}"[:WIDTH] for line in self.changes)]
        if self.failures:
            parts += ["", "FAILED", *(f"- {line}"[:WIDTH] for line in self.failures)]
        if self.notes:
            parts += ["", "Notes", *(f"- {line}"[:WIDTH] for line in self.notes)]
        return "\n".join(line.rstrip() for line in parts) + "\n"

    def write(self, folder: Path, plot: bool = True) -> None:
        """Write results.json and table.txt, and with matplotlib roofline.png."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "results.json", self.document(), indent=None)
        (folder / "table.txt").write_text(self.as_text())
        if plot and self.entries and importlib.util.find_spec("matplotlib"):
            _plot(self, folder / "roofline.png")


def table(entries: Sequence[Entry]) -> list[str]:
    """One line an entry, a heading for each kernel and model."""
    columns = (
        f"{'shape':<30}{'M':>3}{'MB':>8}{'us':>8}{'p10':>8}{'p90':>8}{'GB/s':>6}{'read%':>6}{'floor':>7}"
    )
    lines: list[str] = []
    heading: tuple[str, str] | None = None
    shown: list[str] = []
    for e in entries:
        if (e.kernel, e.model) != heading:
            heading = (e.kernel, e.model)
            group = [x for x in entries if (x.kernel, x.model) == heading]
            shown = [name for name in STOCK if any(name in x.faster for x in group)]
            lines += ["", f"{e.kernel}, {e.model}", columns + "".join(f"{name:>7}" for name in shown)]
        label = e.shape + (" corr." if e.routing == "correlated" else "")
        tokens = str(e.tokens) if e.tokens < 1000 else "-"
        faster = "".join(f"{e.faster[n]:>6.2f}x" if n in e.faster else f"{'-':>7}" for n in shown)
        lines.append(
            f"{label:<30.30}{tokens:>3}{e.bytes_moved / 1e6:>8.2f}{e.ours.median:>8.2f}{e.ours.p10:>8.2f}"
            f"{e.ours.p90:>8.2f}{e.gbps:>6.0f}{e.percent_of_read:>6.1f}{e.floor_us:>7.2f}{faster}"
            f"{'' if e.repeat_agrees else '!'}"
        )
    return lines[1:]


def apart_table(entries: Iterable[Entry]) -> list[str]:
    """Microseconds of single calls: an idle kernel between calls keeps one from beginning in the other."""
    lines = ["One call after an ordinary kernel, us (that kernel's own time taken off), M = 1"]
    versions = ("ours", *STOCK[:4])
    lines.append(f"{'kernel':<16}{'model':<20}{'shape':<24}" + "".join(f"{n:>8}" for n in versions))
    for e in entries:
        if e.apart:
            times = "".join(f"{e.apart[n]:>8.2f}" if n in e.apart else f"{'-':>8}" for n in versions)
            lines.append(f"{e.kernel:<16.15}{e.model:<20.19}{e.shape:<24.23}{times}")
    return lines


def chain_table(entries: Iterable[ChainEntry]) -> list[str]:
    """Experts and router as differences of the chain with and without them; a heading for each model."""
    lines = [
        "In the chain of all layers, us a layer; experts: the chain less that without them; router (with",
        "the residual and the norm before it): the chain without experts less that without these too",
    ]
    columns = (
        f"{'shape':<24}{'M':>3}{'chosen':>7}{'MB':>7}{'chain':>7}{'p10':>7}{'p90':>7}{'without':>8}"
        f"{'router':>7}{'experts':>8}{'read%':>6}{'floor':>7}"
    )
    heading = ""
    for e in entries:
        own = f"{e.model}, {e.layers} layers" + (f", {e.router} router" if e.router else "")
        if own != heading:
            heading = own
            lines += [heading, columns]
        lines.append(
            f"{e.shape:<24.23}{e.tokens:>3}{e.distinct_experts:>7.1f}{e.bytes_moved / 1e6:>7.1f}"
            f"{e.chain.median:>7.2f}{e.chain.p10:>7.2f}{e.chain.p90:>7.2f}{e.without.median:>8.2f}"
            f"{e.router_us:>7.2f}{e.experts_us:>8.2f}{e.percent_of_read:>6.1f}{e.floor_us:>7.2f}"
            f"{'' if e.repeat_agrees else '!'}"
        )
    return lines


def changes(entries: Sequence[Entry], chain: Sequence[ChainEntry], other: dict[str, Any]) -> list[str]:
    """What took 3 % longer or shorter than in ``other``, a results.json; and what only one of them has."""
    now: dict[tuple[Any, ...], float] = {_key(vars(e)): e.ours.median for e in entries}
    now |= {("chain", *_key(vars(e))): e.chain.median for e in chain}
    before = {_key(e): e["ours"]["median"] for e in other["entries"]}
    before |= {("chain", *_key(e)): e["chain"]["median"] for e in other.get("chain", [])}
    both = [key for key in before if key in now]
    lines = [
        f"{' '.join(str(part) for part in key if part)}: {before[key]:.2f} -> {now[key]:.2f} us"
        for key in both
        if abs(now[key] / before[key] - 1) > CHANGE
    ]
    lines += [
        f"{' '.join(str(part) for part in key if part)}: only in one" for key in before.keys() ^ now.keys()
    ]
    return [f"{len(lines)} of {len(both)} times changed by more than {CHANGE:.0%}", *lines]


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name, "") for name in ("kernel", "model", "shape", "tokens", "routing", "router"))


def predictions(entries: Sequence[Entry]) -> list[Prediction]:
    """Bytes over (fraction x 233 GB/s), plus launches; the fraction is the kernel's when streaming."""
    made = []
    for e in entries:
        own = [s.percent_of_read / 100 for s in entries if s.kernel == e.kernel and s.model == STREAMING]
        fraction = min(own) if own else NOMINAL_FRACTION
        time = predict_gb10_us(e.bytes_moved, fraction, e.launches)
        made.append(
            Prediction(e.kernel, e.model, e.shape, e.tokens, e.bytes_moved, e.launches, fraction, time)
        )
    return made


def prediction_table(entries: Sequence[Entry]) -> list[str]:
    """Predictions for one token."""
    formula = f"bytes / (fraction x {GB10_READ_GBPS:.0f} GB/s) + launches x {GB10_LAUNCH_US:.0f} us"
    lines = [
        f"Predicted on a GB10, M = 1: {formula}",
        f"{'kernel':<16}{'model':<20}{'shape':<30}{'MB':>9}{'fraction':>9}{'us':>9}",
    ]
    for p in predictions(entries):
        if p.tokens == 1:
            figures = f"{p.bytes_moved / 1e6:>9.2f}{p.fraction:>9.2f}{p.microseconds:>9.1f}"
            lines.append(f"{p.kernel:<16.15}{p.model:<20.19}{p.shape:<30.29}{figures}")
    return lines


def floors(read_gbps: float, launch_us: float) -> list[str]:
    """Markdown: bytes and least times of every shape, from arithmetic alone."""
    lines = [
        "| kernel | model | shape | M | MB | H200 floor, us | GB10 floor, us | GB10 predicted, us |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def add(kernel: str, shape: Dense | Moe | Gdn, tokens: int, moved: float, launches: int) -> None:
        times = (
            floor_us(moved, read_gbps, launches, launch_us),
            floor_us(moved, GB10_READ_GBPS, launches, GB10_LAUNCH_US),
            predict_gb10_us(moved, NOMINAL_FRACTION, launches),
        )
        figures = " | ".join(f"{t:.1f}" for t in times)
        lines.append(
            f"| {kernel} | {shape.model} | {shape.label} | {tokens} | {moved / 1e6:.2f} | {figures} |"
        )

    counted = (("nvfp4_gemv", nvfp4_bytes), ("fp8_gemv", fp8_bytes), ("sparse24_gemv", sparse24_bytes))
    for kernel, weight_bytes in counted:
        for dense in (STREAMING_DENSE[kernel], *DENSE):
            for tokens in STREAMING_TOKENS if dense.model == STREAMING else (1, 16):
                moved = weight_bytes(dense.rows, dense.columns) + activation_bytes(
                    tokens, dense.columns, dense.rows
                )
                add(kernel, dense, tokens, moved, 1)
    for layer in (STREAMING_MOE, *MOE):
        for tokens in STREAMING_TOKENS if layer.model == STREAMING else TOKENS:
            chosen = round(expected_distinct(layer, tokens))
            add("moe_decode", layer, tokens, moe_bytes(layer, tokens, chosen), 2)
    for heads in GDN:
        for tokens in (1, 16):
            add("gdn_decode", heads, tokens, gdn_bytes(heads, tokens), 1)
    return lines


def _plot(results: Results, path: Path) -> None:
    """GB/s over bytes: ours and the stock paths beside the read bandwidth and the floor with its launch."""
    import matplotlib  # type: ignore[import-not-found,unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    read = results.bandwidth.read_gbps
    figure, axes = pyplot.subplots(figsize=(11, 7))
    sizes = [10 ** (4 + 0.05 * i) for i in range(106)]
    axes.axhline(read, color="black", linewidth=1, label=f"read bandwidth, {read:.0f} GB/s")
    launch = results.bandwidth.launch_us
    axes.plot(
        sizes,
        [size / floor_us(size, read, 1, launch) / 1e3 for size in sizes],
        color="grey",
        linestyle="--",
        linewidth=1,
        label=f"with one launch of {launch:.2f} us",
    )
    kernels = list(dict.fromkeys(e.kernel for e in results.entries))
    colours = pyplot.get_cmap("tab10")
    for i, kernel in enumerate(kernels):
        own = [e for e in results.entries if e.kernel == kernel]
        axes.scatter(
            [e.bytes_moved for e in own], [e.gbps for e in own], s=28, color=colours(i), label=kernel
        )
    for marker, name in (
        ("x", "marlin"),
        ("+", "bf16"),
        ("1", "fp8"),
        ("2", "copy"),
        ("3", "dense"),
        ("4", "vllm"),
    ):
        points = [
            (e.bytes_moved, e.stock_gbps[name], e.kernel) for e in results.entries if name in e.stock_gbps
        ]
        if points:
            x, y, kind = zip(*points, strict=True)
            colour = [colours(kernels.index(k)) for k in kind]
            axes.scatter(x, y, s=36, marker=marker, c=colour, linewidths=1, label=f"stock: {name}")
    axes.set(xscale="log", xlabel="bytes that must move", ylabel="GB/s", ylim=(0, None))
    axes.set_title(f"{results.device['name']}, {results.date}, commit {results.commit}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
