"""Figures and tables of several configurations."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gb10_lab.cli import main
from gb10_lab.engine_bench import command, configurations, models, report
from gb10_lab.engine_bench.figures import Sample, decode_rate


def _spread(value: float) -> dict[str, Any]:
    return {"median": value, "least": value, "most": value, "count": 7}


def _run(name: str, rates: dict[int, float], graph: float, launches: int, gigabytes: float) -> dict[str, Any]:
    return {
        "schema": report.SCHEMA,
        "configuration": {"name": name, "about": "what it is"},
        "device": {"name": "NVIDIA H200", "driver": "580"},
        "layers": 48,
        "start": {"ready_seconds": 60.0, "first_answer_seconds": 61.0},
        "decode": [
            {"batch": batch, "tokens_per_second": _spread(rate), "step_ms": None, "graph_ms": _spread(graph)}
            for batch, rate in rates.items()
        ],
        "profile": [
            {
                "batch": 1,
                "steps": 18,
                "launches": launches,
                "launches_in_graph": launches - 20,
                "wall": 6.0,
                "busy": 5.0,
                "busy_outside": 0.2,
                "idle_long": 0.1,
                "kernels": [
                    {"name": "k", "launches": 2, "microseconds": 5, "path_microseconds": 4, "in_graph": True}
                ],
            }
        ],
        "resident": {
            "components": [
                {"name": "lm_head", "loaded": 10**9, "read": gigabytes * 1e9, "dtypes": {"bfloat16": 10**9}}
            ],
            "state_bytes": 75_000_000,
        },
        "prefill": {"tokens": 8192, "tokens_per_second": _spread(40000)},
    }


RUNS = [
    _run("stock-default", {1: 190, 4: 640, 16: 1600}, 5.06, 1304, 4.161),
    _run("stock-fp8", {1: 195, 4: 620, 16: 1650}, 4.89, 1304, 3.031),
    _run("ours-fp8", {1: 400, 4: 1000, 16: 1700}, 1.9, 380, 2.71),
    _run("ours-nvfp4", {1: 500, 4: 1100, 16: 1800}, 1.5, 290, 2.08),
]
NAMES = [run["configuration"]["name"] for run in RUNS]


def test_rates_are_over_the_best_stock_run_of_each_row() -> None:
    lines = report.compare(RUNS, NAMES).splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    (first,) = [line for line in lines if line.startswith("batch 1, tok/s ") and "(0" in line]
    assert first.split()[3:] == ["190.0", "(0.97)", "195.0", "(1.00)", "400.0", "(2.05)", "500.0", "(2.56)"]
    (fourth,) = [line for line in lines if line.startswith("batch 4, tok/s ") and "(0" in line]
    assert fourth.split()[3:5] == ["640.0", "(1.00)"]
    (graph,) = [line for line in lines if "GPU: graph" in line]
    assert graph.split()[-2:] == ["1.700", "(2.99)"]  # less is better: (4.89 + 0.2) / (1.5 + 0.2)


def test_bars_say_what_is_missed() -> None:
    lines = report.bars(RUNS, NAMES)
    verdicts = {line[:24].strip(): line.rsplit("  ", 1)[-1] for line in lines[1:]}
    assert verdicts == {
        "batch 1, tok/s": "aim reached (ours-nvfp4)",
        "batch 4, tok/s": "reached (ours-nvfp4)",
        "batch 16, tok/s": "MISSED (ours-nvfp4)",
        "prefill 8192, tok/s": "aim reached (ours-nvfp4)",
        "GPU time a step": "aim reached (ours-nvfp4)",
        "launches a step": "aim reached (ours-nvfp4)",
    }
    assert not report.bars(RUNS[:2], NAMES[:2])
    alone = report.bars(RUNS[2:], NAMES[2:])
    assert "not measured" in alone[1]  # no stock run, no ratio


def test_the_prediction_for_a_gb10() -> None:
    # 2.155 GB at 219 GB/s and 290 launches of 2 us
    step = report.predicted_ms(RUNS[3])
    assert step is not None
    assert abs(step - (2.155e9 / (0.94 * 233e9) * 1e3 + 0.58)) < 1e-6


def test_two_cards_are_told() -> None:
    other = RUNS[0] | {"device": {"name": "NVIDIA H100", "driver": "580"}}
    assert "NOT ONE CARD" in report.compare([other, RUNS[2]], ["a", "b"])
    assert "NOT ONE CARD" not in report.compare(RUNS, NAMES)


def test_a_run_that_lacks_parts_has_a_table() -> None:
    bare = {key: RUNS[0][key] for key in ("schema", "configuration", "device", "layers", "start")}
    text = report.table(bare | {"failures": ["prefill: no memory"]})
    assert "FAILED: prefill: no memory" in text
    assert "61.0" in text


def test_differences_of_log_probabilities() -> None:
    def told(values: list[float], greedy: list[int], layers: int = 4) -> dict[str, Any]:
        content = {"ids": [1, 2], "log_probabilities": [[values]], "greedy": [greedy]}
        return RUNS[2] | {"layers": layers, "log_probabilities": content}

    text = report.compare([told([-1, -2], [5, 6, 7]), told([-1.25, -2], [5, 8, 7])], ["a", "b"])
    assert "largest difference 0.250 nats, mean 0.1250; greedy: 1 of 3 tokens alike" in text
    assert math.isnan(report.difference([[1.0]], [[math.nan]])[0])
    assert "another number of layers" in report.compare([told([0], []), told([0], [], 8)], ["a", "b"])


def test_a_rate_needs_a_longer_time_for_more_tokens() -> None:
    assert decode_rate(4, (8, 72), (1.0, 2.0)) == 256
    with pytest.raises(ValueError):
        decode_rate(1, (8, 72), (1.0, 0.9))
    with pytest.raises(ValueError):
        Sample.of([])


def test_models_have_both_kinds_of_layer(tmp_path: Path) -> None:
    config = json.loads((models.write("qwen3-next-80b", tmp_path, 4) / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_experts"], config["vocab_size"]) == (4, 512, 151936)
    assert "lm_head" in config["quantization_config"]["ignore"]


def test_a_model_has_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's compile cache is keyed by its path: with a new one each start compiles again."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    first, _ = command._model("qwen3-next-80b", 4)
    before = (first / "config.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert command._model("qwen3-next-80b", 4) == (first, {})
    assert (first / "config.json").read_bytes() == before
    other, _ = command._model("qwen3-next-80b", 8)
    assert other != first and other.parent == first.parent == tmp_path / "cache" / "gb10-engine-bench"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "fast"], "--config fast: choose from stock-default"),
        (["--config", "ours-fp8", "--do", "all"], "--do all: choose from decode"),
        (["--config", "ours-fp8", "--model", "gpt"], "--model gpt: no such folder"),
        (["--config", "ours-fp8", "--layers", "3"], "--layers 3: choose from 4 to 48"),
        (["--config", "ours-fp8", "--engine", "[]"], "--engine '[]' is not a JSON object"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine-bench", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"gb10: error: {message}")
    assert not (tmp_path / "out").exists()


def test_compare_reads_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for run, name in zip(RUNS, NAMES, strict=True):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(run))
    assert main(["engine-compare", *map(str, files), "--out", str(tmp_path / "compare.txt")]) == 0
    assert capsys.readouterr().out == (tmp_path / "compare.txt").read_text()
    (tmp_path / "other.json").write_text("{}")
    assert main(["engine-compare", str(tmp_path / "other.json")]) == 2


def test_stock_runs_without_us() -> None:
    for each in configurations.CONFIGURATIONS.values():
        plugins = each.environment["VLLM_PLUGINS"]
        assert plugins == ("none" if each.is_stock else "gb10")
        assert ("GB10_ENGINE" in each.environment) == (not each.is_stock)
