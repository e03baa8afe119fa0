"""A whole run without a GPU: operators and clock are replaced, everything else is the benchmark's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gb10.sparse24 import Sparse24Weight, unpack
from gb10_lab.cli import main
from gb10_lab.kernel_bench import adapters, command, data, report, shapes, stock, suite
from gb10_lab.kernel_bench.bandwidth import Bandwidth
from gb10_lab.kernel_bench.figures import spread
from gb10_lab.kernel_bench.timing import Version

ROOT = Path(__file__).parents[3]
SMALL = (shapes.Dense(shapes.NEXT, "lm_head", 64, 128), shapes.Dense(shapes.FLASH, "shared gate_up", 32, 64))
STREAM = shapes.Dense(shapes.STREAMING, "stream", 64, 256)
LAYER = shapes.Moe(shapes.NEXT, "moe", 16, 2, 64, 32, shared=32)
CEILINGS = Bandwidth(4000.0, spread([500.0] * 3), 4, 3900.0, spread([510.0] * 3), 2**31, 2**30, 1.5, 3000.0)


def _version(name: str, weight: Any, copies: int, x: torch.Tensor, error: float) -> Version:
    wanted = data.product(x, weight)
    out = torch.empty(wanted.shape, dtype=torch.bfloat16)
    return Version(name, lambda _: out.copy_(wanted * (1 + error)), copies)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> suite.Settings:
    """Small shapes, reference arithmetic in place of kernels, and a clock that shows 10 us, 11 us, ..."""
    return _small(monkeypatch)


@pytest.fixture(scope="module")
def entries() -> list[suite.Entry]:
    """All that one run measures. Who changes one makes another of it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _entries(_small(monkeypatch))


def _small(monkeypatch: pytest.MonkeyPatch) -> suite.Settings:
    def moe(x: torch.Tensor, copies: list[data.MoeWeights], routed: list[data.Routing]) -> Version:
        out = torch.empty_like(x)
        return Version("ours", lambda i: out.copy_(data.moe_reference(x, copies[i], routed[i])), len(copies))

    def sparse(x: torch.Tensor, rows: int, copies: list[data.Sparse24]) -> Version:
        kept = unpack(Sparse24Weight(*copies[0], rows, x.shape[1]))
        weight = data.Nvfp4(kept.packed, kept.block_scales, copies[0].global_scale)
        return _version("ours", weight, len(copies), x, 0.0)

    monkeypatch.setattr(suite, "DENSE", SMALL)
    monkeypatch.setattr(suite, "STREAMING_DENSE", dict.fromkeys(shapes.STREAMING_DENSE, STREAM))
    monkeypatch.setattr(suite, "MOE", (LAYER,))
    monkeypatch.setattr(suite, "STREAMING_MOE", shapes.Moe(shapes.STREAMING, "stream", 4, 2, 64, 32))
    monkeypatch.setattr(suite, "QUANTIZE", ())
    monkeypatch.setattr(
        adapters, "nvfp4_gemv", lambda x, copies: _version("ours", copies[0], len(copies), x, 0.0)
    )
    monkeypatch.setattr(adapters, "fp8_gemv", lambda x, c: _version("ours", c[0], len(c), x, 0.0))
    monkeypatch.setattr(adapters, "moe_decode", moe)
    monkeypatch.setattr(stock, "fp8", lambda x, c: _version("fp8", c[0], len(c), x, 0.01))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(suite, "record", lambda version, _bytes, apart=False: version)
    monkeypatch.setattr(
        suite, "in_turns", lambda each, _s: [spread([10.0 + i] * 9) for i in range(len(each))]
    )
    monkeypatch.setattr(adapters, "sparse24_gemv", sparse)
    monkeypatch.setattr(adapters, "held", lambda: ["nvfp4_gemv"])
    operators = ("nvfp4_gemv", "fp8_gemv", "sparse24_gemv", "moe_decode")
    return suite.Settings(torch.device("cpu"), 1 << 16, 0.1, False, operators, False, CEILINGS)


def _entries(settings: suite.Settings) -> list[suite.Entry]:
    return [
        suite.measure(case, settings, print) for job in suite.jobs(settings, print) for case in job.cases()
    ]


def _results(entries: list[suite.Entry]) -> report.Results:
    device = {"name": "NVIDIA H200", "driver": "580.159.04", "torch": "2.11.0+cu130"}
    given = (
        "abc1234",
        "2026-11-22 18:00 UTC",
        "python -m gb10_lab.kernel_bench",
        False,
        0.25,
        "vLLM 0.32.0",
        CEILINGS,
    )
    return report.Results(device, *given, entries, ["a" * 150], ["b" * 150])


def test_every_shape_and_number_of_tokens_is_measured(
    settings: suite.Settings, entries: list[suite.Entry]
) -> None:
    real = [e for e in entries if e.kernel == "nvfp4_gemv" and e.model == shapes.NEXT]
    assert [e.tokens for e in real] == list(shapes.TOKENS)
    layers = [(e.tokens, e.routing) for e in entries if e.kernel == "moe_decode" and e.model == shapes.NEXT]
    assert layers == [
        (1, "uniform"),
        (2, "uniform"),
        (4, "uniform"),
        (8, "uniform"),
        (8, "correlated"),
        (16, "uniform"),
        (16, "correlated"),
    ]
    first = real[0]
    assert first.ours.median == 10.0
    assert first.again.median == 11.0
    assert first.faster == {"bf16": pytest.approx(1.2)}
    assert first.bytes_moved == shapes.nvfp4_bytes(64, 128) + shapes.activation_bytes(1, 128, 64)
    assert first.percent_of_read == pytest.approx(100 * first.bytes_moved / 10.0 / 1e3 / 4000)
    assert first.apart == {"ours": 8.5, "bf16": 9.5}
    assert not first.repeat_agrees
    assert {e.kernel for e in entries} == set(settings.operators)
    assert all(set(e.faster) == {"dense"} for e in entries if e.kernel == "sparse24_gemv")


def test_results_hold_what_a_reader_needs(entries: list[suite.Entry], tmp_path: Path) -> None:
    results = _results(entries)
    results.write(tmp_path, plot=False)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["schema"] == report.SCHEMA
    assert {"device", "commit", "date", "command", "bandwidth", "entries", "failures", "gb10"} <= set(
        document
    )
    assert {"median", "min", "p10", "p90", "samples"} == set(document["entries"][0]["ours"])
    predictions = document["gb10"]["predictions"]
    assert len(predictions) == len(document["entries"])
    streamed = [
        e for e in document["entries"] if e["kernel"] == "nvfp4_gemv" and e["model"] == shapes.STREAMING
    ]
    wanted = min(e["percent_of_read"] for e in streamed) / 100
    assert predictions[0]["fraction"] == pytest.approx(wanted)


def test_tables_fit_the_width_with_the_largest_numbers(entries: list[suite.Entry]) -> None:
    huge = [
        suite.Entry(
            **{
                **vars(e),
                "shape": "x" * 60,
                "bytes_moved": 1_415_710_000,
                "ours": spread([1000.25] * 9),
                "gbps": 4300.0,
                "percent_of_read": 100.0,
                "floor_us": 332.75,
                "faster": {"marlin": 10.5, "bf16": 10.5},
                "apart": dict.fromkeys(("ours", "marlin", "bf16", "fp8", "vllm"), 1000.25),
            }
        )
        for e in entries
    ]
    text = _results(huge).as_text()
    too_wide = [line for line in text.splitlines() if len(line) > report.WIDTH]
    assert not too_wide
    assert "1415.71 1000.25" in text, "columns stay apart"


def test_a_wrong_kernel_is_not_timed(settings: suite.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        adapters, "nvfp4_gemv", lambda x, copies: _version("ours", copies[0], len(copies), x, 0.05)
    )
    with pytest.raises(RuntimeError, match=r"ours is off by [45]\.\de-02; [23]e-03 is allowed"):
        _entries(settings)


def test_a_kernel_that_leaves_output_unwritten_is_caught(
    settings: suite.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(x: torch.Tensor, copies: list[data.Nvfp4]) -> Version:
        wanted = data.product(x, copies[0]).to(torch.bfloat16)
        return Version("ours", lambda _: wanted, len(copies))

    monkeypatch.setattr(adapters, "nvfp4_gemv", lazy)
    with pytest.raises(RuntimeError, match=r"off by nan|different bits"):
        _entries(settings)


def test_a_kernel_that_changes_its_bits_is_caught(
    settings: suite.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moody(x: torch.Tensor, copies: list[data.Nvfp4]) -> Version:
        wanted, out, calls = (
            data.product(x, copies[0]),
            x.new_empty(x.shape[0], copies[0].packed.shape[0]),
            [0],
        )

        def run(_: int) -> torch.Tensor:
            calls[0] += 1
            return out.copy_(wanted * (1 + 1e-2 * (calls[0] % 2)))

        return Version("ours", run, len(copies))

    monkeypatch.setattr(adapters, "nvfp4_gemv", moody)
    with pytest.raises(RuntimeError, match="two runs gave different bits"):
        _entries(settings)


def test_a_stock_path_that_refuses_is_left_out_and_noted(
    settings: suite.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(_: int) -> torch.Tensor:
        raise RuntimeError("not on this GPU\nmore")

    monkeypatch.setattr(stock, "bf16", lambda _x, _w: Version("bf16", refusing, 1))
    notes: list[str] = []
    job = next(suite.jobs(settings, notes.append))
    entry = suite.measure(next(job.cases()), settings, notes.append)
    assert entry.stock == {}
    assert notes == [notes[0]]
    assert notes[0].endswith("bf16 left out, not on this GPU")


def test_the_plot_is_written(entries: list[suite.Entry], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _results(entries).write(tmp_path)
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.txt").is_file()


def test_the_command_knows_the_adapters_operators() -> None:
    assert set(command.CHAIN_NEEDS) <= set(adapters.OPERATORS)


def test_floors_need_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel-bench", "--floors"]) == 0
    written = (ROOT / "lab" / "floors.md").read_text()
    assert capsys.readouterr().out in written


@pytest.mark.parametrize("name", ["kernel-bench", "kernel-bits", "kernel-smoke"])
def test_without_a_gpu_one_line_says_so(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "gb10_lab", name]
    words += [] if name == "kernel-smoke" else ["--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gb10: error: there is no CUDA GPU here")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
