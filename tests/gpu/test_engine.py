"""vLLM on the GPU through our kernels against vLLM's own: the trained model's greedy tokens, part by part.

GB10_DEMO_MODEL names the model. Every engine is a process of its own, since a process has one mode. Text and
batches are such that every path runs: prompts of 1 to 300 tokens, and decode batches of 1, of up to 16, and
of more.

Two kernels round differently, so a near-tie may fall the other way: where tokens first differ, the choice
must have been open for the stock engine too. What else may differ is bounded by the prompts' log
probabilities, which no choice moves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from reference.engines import serve_tokens

pytestmark = pytest.mark.skipif("GB10_DEMO_MODEL" not in os.environ, reason="GB10_DEMO_MODEL is not set")

OPEN = math.log(0.75)
"""A token likelier than this was no near-tie."""

NEAR = {"keep": 0.08, "fp8": 0.25, "nvfp4": 0.55}
"""Mean difference of a prompt token's log probability, by the format of the dense side and the head: half
as much again as on an H200 (0.053, 0.164, 0.368). The prompts are noise, which no model is sure of; what the
formats cost on text is `gb10_lab quality-served`."""

NEW = 24
ONE_BY_ONE: dict[str, Any] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""Without torch.compile: an engine starts in half the time. CUDA graphs for decode all the same."""


BACKENDS = {"linear": "linear", "moe": "experts"}
"""vLLM's name of a backend's option, and the part that takes its place."""

ALL = ("dense", "head", "linear", "experts", "router", "gdn")


def _text(length: int, number: int) -> list[int]:
    return [
        (number * 997 + place * (31 + number) + place * place * 7) % 5900 + 100 for place in range(length)
    ]


def _job(compilation: dict[str, Any] | None, drafts: int = 0, ours: Collection[str] = ()) -> dict[str, Any]:
    """``ours``: the parts that are. The others of the experts' and linear layers are Marlin's: on 9.0 vLLM's
    own choice is compiled when an engine first starts."""
    engine: dict[str, Any] = {
        "model": os.environ["GB10_DEMO_MODEL"],
        "dtype": "bfloat16",
        "max_model_len": 512,
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": 256 * 2**20,
        "enable_prefix_caching": False,
        "gdn_prefill_backend": "triton",  # FlashInfer's compiles at first use, from packages of its own
    }
    engine |= {f"{name}_backend": "marlin" for name, part in BACKENDS.items() if part not in ours}
    if compilation is not None:
        engine["compilation_config"] = compilation
    if drafts:
        engine["speculative_config"] = {"method": "mtp", "num_speculative_tokens": drafts}
    return {
        "engine": engine,
        "prompts": [_text(1 + 15 * number, number) for number in range(20)],
        "alone": [_text(length, 40 + length) for length in (1, 7, 40)],
        "max_tokens": NEW,
    }


def _serve(folder: Path, job: dict[str, Any], **variables: str) -> dict[str, Any]:
    compiled = "compilation_config" not in job["engine"]
    given = {"TORCH_COMPILE_DISABLE": "0" if compiled else "1"} | variables
    answer: dict[str, Any] = serve_tokens(job, folder / "answer.json", given)
    return answer


def _check(ours: dict[str, Any], stock: dict[str, Any], bound: float) -> None:
    differences, moved = [], 0
    for number, (one, other) in enumerate(zip(ours["prompts"], stock["prompts"], strict=True)):
        differences += [
            abs(a - b) for a, b in zip(one["prompt_logprobs"], other["prompt_logprobs"], strict=True)
        ]
        pairs = list(zip(one["tokens"], other["tokens"], strict=True))
        place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        if place is not None:
            moved += 1
            said = other["logprobs"][place]
            assert said < OPEN, f"prompt {number}, new token {place}: stock was sure of it ({said:.3f})"
    mean, most = sum(differences) / len(differences), max(differences)
    print(
        f"prompts: mean difference {mean:.4f}, largest {most:.3f}; {moved} of {len(ours['prompts'])} moved on"
    )
    assert all(map(math.isfinite, differences))
    assert mean < bound


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _serve(tmp_path_factory.mktemp("stock"), _job(ONE_BY_ONE), GB10_ENGINE="stock")


@pytest.mark.parametrize(
    ("parts", "dense"),
    [
        ("dense,head,linear,experts,router,gdn", "fp8"),
        ("dense,head,linear,experts,router,gdn", "nvfp4"),
        ("linear,experts,router,gdn", "keep"),
        ("linear", "keep"),
        ("experts", "keep"),
        ("experts,router", "keep"),
        ("gdn", "keep"),
        ("dense,head", "fp8"),
        ("none", "keep"),
    ],
)
def test_parts(parts: str, dense: str, stock: dict[str, Any], tmp_path: Path) -> None:
    """Each part of the engine alone, and all together, with CUDA graphs."""
    variables = {"GB10_ENGINE": "gb10", "GB10_ENGINE_PARTS": parts, "GB10_DENSE": dense, "GB10_HEAD": dense}
    job = _job(ONE_BY_ONE, ours=parts.split(","))
    _check(_serve(tmp_path, job, **variables), stock, NEAR[dense])


def test_all_compiled(stock: dict[str, Any], tmp_path: Path) -> None:
    """As `gb10 serve` runs it: torch.compile, full graphs for decode, and pieces for the rest."""
    _check(_serve(tmp_path, _job(None, ours=ALL), GB10_ENGINE="gb10"), stock, NEAR["fp8"])


def test_drafts(tmp_path: Path) -> None:
    """With MTP drafts: the tokens of the engine without them, and as many accepted as with the stock one."""
    (tmp_path / "stock").mkdir()
    serial = _serve(tmp_path, _job(ONE_BY_ONE, ours=ALL), GB10_ENGINE="gb10")
    drafted = _serve(tmp_path, _job(ONE_BY_ONE, 2, ALL), GB10_ENGINE="gb10")
    by_stock = _serve(tmp_path / "stock", _job(ONE_BY_ONE, drafts=2), GB10_ENGINE="stock")
    _check(drafted, serial, NEAR["fp8"])
    (proposed, accepted), (stock_proposed, stock_accepted) = drafted["drafts"], by_stock["drafts"]
    print(f"accepted {accepted} of {proposed}; stock {stock_accepted} of {stock_proposed}")
    assert abs(accepted / proposed - stock_accepted / stock_proposed) < 0.05
