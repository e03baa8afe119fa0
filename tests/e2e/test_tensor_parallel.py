"""Our engine's layers on two ranks, against one: vLLM's CPU engine on stand-ins for the kernels.

What is divided: requantised projections, NVFP4 linear layers, experts with the shared one, Gated DeltaNet,
the head, and the drafter that shares it. Sums of two ranks are added in bfloat16, so where new tokens first
differ the choice must have been open.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from reference import engines, forms
from reference.forked import serve_tokens
from reference.forms import Form
from reference.random_moe import UNQUANTIZED, write_random_moe
from tokenizers import Tokenizer

from gb10.vllm_plugin.cpu.mode import ENV_NAME
from gb10.vllm_plugin.cuda.requant.names import REPORT_NAME
from gb10.vllm_plugin.cuda.settings import DENSE_NAME, HEAD_NAME
from gb10_lab.testbed.quantize import quantize_checkpoint

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

TEXTS = ("import", "class Node:\n    def", "A block scale covers sixteen values of a row, and")

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def models(testbed: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained model with experts that two ranks can share, and one without a shared expert."""
    folder = tmp_path_factory.mktemp("models")
    write_random_moe(folder / "bf16", testbed)
    quantize_checkpoint(folder / "bf16", folder / "qwen3_moe", UNQUANTIZED)
    wide = forms.with_wider_experts(Form.read(demo_model)).write(folder / "qwen3_next", testbed)
    return {"qwen3_next": wide, "qwen3_moe": folder / "qwen3_moe"}


@pytest.fixture(scope="module")
def prompts(testbed: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(testbed / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": engines.mtp(2),
    "qwen3_moe": {"enable_expert_parallel": True},
}
"""The trained model with drafts; the other one with each expert on one rank."""


def _serve(folder: Path, prompts: list[list[int]], family: str, model: Path, ranks: int) -> Answer:
    """Both requantised: the dense side to FP8, the head to NVFP4."""
    engine: dict[str, Any] = engines.ON_CPU | FAMILIES[family] | {"model": str(model)}
    if ranks > 1:
        engine |= {"tensor_parallel_size": ranks, "distributed_executor_backend": "mp"}
    report = folder / "report.json"
    variables = {
        ENV_NAME: "packed",
        "OMP_NUM_THREADS": "1",
        "GB10_TEST_INSTALL": "reference.cpu_engine reference.cpu_requant",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        DENSE_NAME: "fp8",
        HEAD_NAME: "nvfp4",
        REPORT_NAME: str(report),
    }
    job = {"engine": engine, "prompts": prompts, "alone": prompts[1:2], "max_tokens": 12}
    answer: Answer = serve_tokens(job, folder / "answer.json", variables)
    return answer | {"report": json.loads(report.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def one(
    family: str, models: dict[str, Path], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Answer:
    return _serve(tmp_path_factory.mktemp("one"), prompts, family, models[family], 1)


@pytest.fixture(scope="module")
def two(
    family: str, models: dict[str, Path], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Answer:
    return _serve(tmp_path_factory.mktemp("two"), prompts, family, models[family], 2)


def test_tokens_are_those_of_one_rank(family: str, one: Answer, two: Answer) -> None:
    differences = engines.differences(two, one)
    print(f"{family}: largest {max(differences):.3f}, mean {sum(differences) / len(differences):.4f}")
    # FP8 of an output projection's columns has other scales on two ranks. Seen: 0.453 and 0.050.
    assert max(differences) < 0.8 and sum(differences) / len(differences) < 0.08
    engines.moved_on(two, one)


def test_both_ranks_run_what_one_does(family: str, one: Answer, two: Answer) -> None:
    expected = {(operation, kernel) for operation, kernel, _ in one["dispatched"]}
    wanted = {("router", "route_experts"), ("nvfp4_moe", "moe_decode"), ("lm_head", "nvfp4_gemv")}
    if family == "qwen3_next":
        wanted |= {("gdn_decode", "gdn_decode"), ("dense", "fp8_gemv")}
    assert wanted <= expected
    assert len(two["dispatched"]) == 2
    for rank, record in enumerate(two["dispatched"]):
        assert {(operation, kernel) for operation, kernel, _ in record} == expected, f"rank {rank}"


def test_drafts_are_accepted_as_on_one_rank(family: str, one: Answer, two: Answer) -> None:
    assert ("drafts" in one) == ("drafts" in two) == ("speculative_config" in FAMILIES[family])
    if "drafts" in one:
        for proposed, accepted in (one["drafts"], two["drafts"]):
            assert 0 < accepted <= proposed
        assert abs(one["drafts"][1] - two["drafts"][1]) <= 3


def test_the_report_is_of_both_ranks(one: Answer, two: Answer) -> None:
    """Rows keep their scales when rows are divided; columns that are get finer ones, which lose less."""
    for single, both in zip(one["report"], two["report"], strict=True):
        wholes = {entry["name"]: entry for entry in single["matrices"]}
        assert list(wholes) == [entry["name"] for entry in both["matrices"]]
        assert both["kept"] == single["kept"]
        for entry in both["matrices"]:
            whole, (rows, columns) = wholes[entry["name"]], entry["shape"]
            by_column = entry["name"].endswith(("out_proj", "o_proj", "down_proj"))
            assert entry["ranks"] == 2 and entry["bytes_before"] == whole["bytes_before"]
            assert whole["shape"] == ([rows, 2 * columns] if by_column else [2 * rows, columns])
            if by_column:
                assert 0.9 * whole["relative_error"] < entry["relative_error"] < whole["relative_error"]
            elif entry["format"] == "fp8":
                assert entry["relative_error"] == pytest.approx(whole["relative_error"], rel=1e-6)
                assert entry["bytes_after"] == whole["bytes_after"]
            else:
                assert entry["relative_error"] == pytest.approx(whole["relative_error"], rel=0.01)
