"""Our engine's layers in vLLM's CPU engine, on stand-ins for the kernels, against the stock CPU engine.

What a GPU adds is in tests/gpu/test_engine.py. Both engines run the trained model in bfloat16 from the same
packed weights. They round at other places, so where new tokens first differ the choice must have been open.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from reference.engines import serve_tokens

from gb10.vllm_plugin.cpu.mode import ENV_NAME

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

DRAFTS = 2
OPEN = math.log(0.75)
"""A token likelier than this was no near-tie."""

LARGEST, MEAN = 0.4, 0.06
"""Differences of a prompt token's log probability. Seen: 0.14 and 0.033."""


def _job(model: Path, drafts: int = 0) -> dict[str, Any]:
    engine: dict[str, Any] = {
        "model": str(model),
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 64 * 2**20,
        "enable_prefix_caching": False,
    }
    if drafts:
        engine["speculative_config"] = {"method": "mtp", "num_speculative_tokens": drafts}
    lengths = (1, 2, 5, 17, 33)
    prompts = [
        [(7 * place + 3 * number * number) % 6000 + 5 for place in range(length)]
        for number, length in enumerate(lengths)
    ]
    return {"engine": engine, "prompts": prompts[:3], "alone": prompts[3:], "max_tokens": 12}


@pytest.fixture(scope="module")
def ours(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Our layers, serial and with drafts, one after the other in one process."""
    jobs = [_job(demo_model), _job(demo_model, DRAFTS)]
    variables = {ENV_NAME: "packed", "OMP_NUM_THREADS": "1", "GB10_TEST_INSTALL": "reference.cpu_engine"}
    found: list[dict[str, Any]] = serve_tokens(
        jobs, tmp_path_factory.mktemp("ours") / "answer.json", variables
    )
    return found


@pytest.fixture(scope="module")
def stock(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    variables = {ENV_NAME: "packed", "OMP_NUM_THREADS": "1"}
    found: dict[str, Any] = serve_tokens(
        _job(demo_model), tmp_path_factory.mktemp("stock") / "answer.json", variables
    )
    return found


def _same_but_for_near_ties(one: dict[str, Any], other: dict[str, Any]) -> None:
    for number, (left, right) in enumerate(zip(one["prompts"], other["prompts"], strict=True)):
        pairs = zip(left["tokens"], right["tokens"], strict=True)
        place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        if place is not None:
            said = right["logprobs"][place]
            assert said < OPEN, f"prompt {number}, new token {place}: the other engine was sure ({said:.3f})"


def test_tokens_are_those_of_the_stock_engine(ours: list[dict[str, Any]], stock: dict[str, Any]) -> None:
    pairs = [
        (a, b)
        for left, right in zip(ours[0]["prompts"], stock["prompts"], strict=True)
        for a, b in zip(left["prompt_logprobs"], right["prompt_logprobs"], strict=True)
    ]
    differences = [abs(a - b) for a, b in pairs]
    assert max(differences) < LARGEST
    assert sum(differences) / len(differences) < MEAN
    _same_but_for_near_ties(ours[0], stock)


def test_our_operators_ran(ours: list[dict[str, Any]], stock: dict[str, Any]) -> None:
    ran = {(operation, kernel) for operation, kernel, _ in ours[0]["dispatched"]}
    assert ran >= {("router", "route_experts"), ("router", "vLLM"), ("gdn_decode", "gdn_decode")}
    assert ("gdn_decode", "vLLM") not in ran
    assert stock["dispatched"] == []


def test_drafts_are_verified_by_the_same_operator(ours: list[dict[str, Any]]) -> None:
    """Drafted output is that of the serial engine; drafts of equal length do not need vLLM's kernels."""
    serial, drafted = ours
    proposed, accepted = drafted["drafts"]
    assert 0 < accepted <= proposed
    _same_but_for_near_ties(drafted, serial)
