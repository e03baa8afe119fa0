"""Our engine's layers in vLLM's CPU engine, on stand-ins for the kernels, against the stock CPU engine.

What a GPU adds is in tests/gpu/test_engine.py. Both engines run in bfloat16 from the same packed weights.
They round at other places, so where new tokens first differ the choice must have been open.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from reference import engines, forms
from reference.forked import serve_tokens
from reference.forms import Form
from reference.random_moe import UNQUANTIZED, write_random_moe
from tokenizers import Tokenizer

from gb10.vllm_plugin.cpu.mode import ENV_NAME
from gb10_lab.testbed.quantize import quantize_checkpoint

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

FAMILIES = ("qwen3_next", "qwen3_5_moe", "qwen3_moe")
"""Qwen3.5's has the numbers of Qwen3-Next's, in another order of rows; Qwen3-MoE's are random."""

LARGEST, MEAN = 0.8, 0.06
"""Differences of a prompt token's log probability. Seen: 0.47 and 0.033. Our kernels multiply by the weights
as they are, the stock CPU engine by weights rounded to bfloat16, and a near-tie of the router can flip."""

TEXTS = (
    "A block scale covers sixteen values of a row, and",
    "import",
    "class Node:\n    def",
    "import os\nimport sys\n\ndef main(argv):\n    parser = argparse.ArgumentParser()\n    parser.",
)

Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def models(testbed: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    write_random_moe(folder / "bf16", testbed)
    quantize_checkpoint(folder / "bf16", folder / "qwen3_moe", UNQUANTIZED)
    turned = forms.qwen3_5_moe(forms.with_exact_reciprocals(Form.read(demo_model)))
    return {
        "qwen3_next": demo_model,
        "qwen3_5_moe": turned.write(folder / "qwen3_5_moe", testbed),
        "qwen3_moe": folder / "qwen3_moe",
    }


@pytest.fixture(scope="module")
def prompts(testbed: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(testbed / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


def _job(model: Path, prompts: list[list[int]], drafts: int = 0, **more: Any) -> dict[str, Any]:
    engine = engines.ON_CPU | {"model": str(model), "language_model_only": True} | more
    if drafts:
        engine |= engines.mtp(drafts)
    return {"engine": engine, "prompts": prompts[:3], "alone": prompts[3:], "max_tokens": 12}


def _serve(jobs: dict[str, dict[str, Any]], folder: Path, **variables: str) -> Answers:
    """One engine after the other, in one process."""
    given = {ENV_NAME: "packed", "OMP_NUM_THREADS": "1"} | variables
    found = serve_tokens(list(jobs.values()), folder / "answer.json", given)
    return dict(zip(jobs, found, strict=True))


@pytest.fixture(scope="module")
def ours(
    models: dict[str, Path], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    jobs = {family: _job(model, prompts) for family, model in models.items()}
    jobs["drafts"] = _job(models["qwen3_next"], prompts, drafts=2)
    # Two sequences of three tokens do not fit: the last one has fewer drafts.
    few = {"max_num_batched_tokens": 5, "max_num_seqs": 3}
    jobs["drafts of unequal length"] = _job(models["qwen3_next"], prompts, drafts=2, **few)
    return _serve(jobs, tmp_path_factory.mktemp("ours"), GB10_TEST_INSTALL="reference.cpu_engine")


@pytest.fixture(scope="module")
def stock(
    models: dict[str, Path], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    jobs = {family: _job(models[family], prompts) for family in ("qwen3_next", "qwen3_moe")}
    found = _serve(jobs, tmp_path_factory.mktemp("stock"))
    return found | {"qwen3_5_moe": found["qwen3_next"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_stock_engine(family: str, ours: Answers, stock: Answers) -> None:
    differences = engines.differences(ours[family], stock[family])
    print(f"{family}: largest {max(differences):.3f}, mean {sum(differences) / len(differences):.4f}")
    assert max(differences) < LARGEST
    assert sum(differences) / len(differences) < MEAN
    engines.moved_on(ours[family], stock[family])


DRAFTS = ("drafts", "drafts of unequal length")


@pytest.mark.parametrize("family", [*FAMILIES, *DRAFTS])
def test_our_operators_ran(family: str, ours: Answers, stock: Answers) -> None:
    ran = {(operation, kernel) for operation, kernel, _ in ours[family]["dispatched"]}
    expected = {("router", "route_experts"), ("nvfp4_moe", "moe_decode")}
    expected |= {("norm", "add_norm"), ("attention_front", "attention_front")}
    if family != DRAFTS[1]:
        expected |= {("router", "vLLM"), ("nvfp4_moe", "moe_grouped")}
    if family != "qwen3_moe":
        expected |= {("gdn_decode", "gdn_decode")}
    assert ran - {("nvfp4_linear", "dequantised_nvfp4")} == expected | {("nvfp4_linear", "nvfp4_gemv")}
    assert stock["qwen3_moe"]["dispatched"] == []


@pytest.mark.parametrize("name", DRAFTS)
def test_drafts_are_verified_by_the_same_operator(name: str, ours: Answers) -> None:
    """Drafted output is that of the serial engine."""
    proposed, accepted = ours[name]["drafts"]
    assert 0 < accepted <= proposed
    # The last step of a sequence may have fewer drafts in any case.
    assert name != DRAFTS[1] or ours[name]["lengths"]
    engines.moved_on(ours[name], ours["qwen3_next"])
