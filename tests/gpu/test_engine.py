"""vLLM on the GPU through our kernels against vLLM's own: the trained model's greedy tokens, part by part.

GB10_DEMO_MODEL names the model. Every engine is a process of its own, since a process has one mode. Those
that the chosen tests need start together, GB10_ENGINES at a time (4): most of a start is the processor's.
Text and batches are such that every path runs: prompts of 1 to 300 tokens, and decode batches of 1, of up to
16, and of more.

Two kernels round differently, so a near-tie may fall the other way: where tokens first differ, the choice
must have been open for the other engine too. What else may differ is bounded by the prompts' log
probabilities, which no choice moves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from reference.engines import ON_GPU, differences, moved_on, serve_tokens

from gb10_lab.speculative.acceptance import Counters
from gb10_lab.speculative.exactness import Drafter

pytestmark = pytest.mark.skipif("GB10_DEMO_MODEL" not in os.environ, reason="GB10_DEMO_MODEL is not set")

NEAR = {"keep": 0.08, "fp8": 0.25, "nvfp4": 0.55}
"""Mean difference of a prompt token's log probability, by the format of the dense side and the head: half
as much again as on an H200 (0.053, 0.164, 0.368). The prompts are noise, which no model is sure of; what the
formats cost on text is `gb10_lab quality-served`."""

SAME = 0.08
"""The same between two engines of one format: rounding alone, as for `keep`."""

ACCEPTED = 0.05
"""Difference of the share of drafts that are accepted from float32's on the same text: near-ties of the draft
head, of which noise has many. Texts differ more: 0.45 and 0.40 were seen of the stock engine and ours."""

NEW = 24
DRAFTS = 2
ONE_BY_ONE: dict[str, Any] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""Without torch.compile: an engine starts in half the time. CUDA graphs for decode all the same."""

BACKENDS = {"linear": "linear", "moe": "experts"}
"""vLLM's name of a backend's option, and the part that takes its place."""

ALL = ("dense", "head", "linear", "experts", "router", "gdn")

Answer = dict[str, Any]


def _text(length: int, number: int) -> list[int]:
    return [
        (number * 997 + place * (31 + number) + place * place * 7) % 5900 + 100 for place in range(length)
    ]


TOGETHER = [_text(1 + 15 * number, number) for number in range(20)]
ALONE = [_text(length, 40 + length) for length in (1, 7, 40)]
"""Prompts that run at the same time, and one after the other."""


@dataclass(frozen=True)
class Engine:
    """One engine: ``parts`` of it ours, ``dense`` the format of the dense side and the head."""

    parts: tuple[str, ...] = ()
    dense: str = "keep"
    drafts: int = 0
    compiled: bool = False
    stock: bool = False

    def arguments(self) -> dict[str, Any]:
        """Of ``vllm.LLM``. What is not ours of experts and linear layers is Marlin's.

        On 9.0 vLLM's own choice is compiled when an engine first starts.
        """
        engine: dict[str, Any] = {
            **ON_GPU,
            "model": os.environ["GB10_DEMO_MODEL"],
            "max_num_batched_tokens": 4096,
            "gpu_memory_utilization": 0.1,  # others run beside it
            "kernel_config": {"enable_jit_warmup": False},
        }
        engine |= {f"{name}_backend": "marlin" for name, part in BACKENDS.items() if part not in self.parts}
        if not self.compiled:
            engine["compilation_config"] = ONE_BY_ONE
        if self.drafts:
            # The drafter's experts are in 16 bit, which Marlin has no kernel for.
            given = {"method": "mtp", "num_speculative_tokens": self.drafts, "moe_backend": "triton"}
            engine["speculative_config"] = given
        return engine

    def serve(self, answer: Path) -> Answer:
        """Run it once, through the file ``answer``."""
        job = {
            "engine": self.arguments(),
            "prompts": TOGETHER,
            "alone": ALONE,
            "max_tokens": NEW,
        }
        variables = {"TORCH_COMPILE_DISABLE": "0" if self.compiled else "1"}
        if self.stock:
            variables |= {"GB10_ENGINE": "stock"}
        else:
            parts = ",".join(self.parts) or "none"
            variables |= {"GB10_ENGINE": "gb10", "GB10_ENGINE_PARTS": parts}
            variables |= {"GB10_DENSE": self.dense, "GB10_HEAD": self.dense}
        found: Answer = serve_tokens(job, answer, variables)
        return found


STOCK = Engine(stock=True)
FULL = Engine(ALL, "fp8")
PARTS = {
    "all-fp8": FULL,
    "all-nvfp4": Engine(ALL, "nvfp4"),
    "all-keep": Engine(("linear", "experts", "router", "gdn")),
    "linear": Engine(("linear",)),
    "experts": Engine(("experts",)),
    "experts-router": Engine(("experts", "router")),
    "gdn": Engine(("gdn",)),
    "dense-head-fp8": Engine(("dense", "head"), "fp8"),
    "none": Engine(),
}
COMPILED = Engine(ALL, "fp8", compiled=True)
DRAFTED = Engine(ALL, "fp8", DRAFTS)


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Engine], Answer]]:
    """What an engine answered. The engines of all tests that will run are under way from the first on."""
    folder, futures = tmp_path_factory.mktemp("engines"), dict[Engine, Future[Answer]]()
    with ThreadPoolExecutor(int(os.environ.get("GB10_ENGINES", "4"))) as pool:
        for item in request.session.items:
            if item.path == request.path and isinstance(item, pytest.Function):
                needed: Collection[Engine] = item.callspec.params["engines"]  # type: ignore[assignment]
                for engine in needed:
                    if engine not in futures:
                        futures[engine] = pool.submit(engine.serve, folder / f"{len(futures)}.json")
        yield lambda engine: futures[engine].result()
        pool.shutdown(cancel_futures=True)


def _check(ours: Answer, other: Answer, bound: float) -> None:
    found, moved = differences(ours, other), moved_on(ours, other)
    mean, most = sum(found) / len(found), max(found)
    print(
        f"prompts: mean difference {mean:.4f}, largest {most:.3f}; {moved} of {len(ours['prompts'])} moved on"
    )
    assert all(map(math.isfinite, found))
    assert mean < bound


@pytest.mark.parametrize(
    "engines", [pytest.param((STOCK, engine), id=name) for name, engine in PARTS.items()]
)
def test_parts(engines: Collection[Engine], served: Callable[[Engine], Answer]) -> None:
    """Each part of the engine alone, and all together, with CUDA graphs, beside the stock engine."""
    stock, ours = engines
    _check(served(ours), served(stock), NEAR[ours.dense])


@pytest.mark.parametrize("engines", [(STOCK, COMPILED)], ids=["fp8"])
def test_all_compiled(engines: Collection[Engine], served: Callable[[Engine], Answer]) -> None:
    """As `gb10 serve` runs it: torch.compile, full graphs for decode, and pieces for the rest."""
    stock, ours = engines
    _check(served(ours), served(stock), NEAR[ours.dense])


@pytest.mark.parametrize("engines", [(FULL, DRAFTED)], ids=["fp8"])
def test_drafts(engines: Collection[Engine], served: Callable[[Engine], Answer]) -> None:
    """With MTP drafts: the tokens of the engine without them, and as many accepted as float32 accepts."""
    serial, ours = (served(engine) for engine in engines)
    _check(ours, serial, SAME)
    drafter, exact = Drafter(Path(os.environ["GB10_DEMO_MODEL"])), Counters()
    for prompt, one in zip((*TOGETHER, *ALONE), ours["prompts"], strict=True):
        exact = exact.plus(drafter.accepted((*prompt, *one["tokens"]), len(prompt), DRAFTS))
    proposed, accepted = ours["drafts"]
    share, expected = accepted / proposed, sum(exact.accepted) / (exact.drafts * DRAFTS)
    print(f"{accepted:.0f} of {proposed:.0f} drafts accepted: {share:.3f}; float32: {expected:.3f}")
    assert abs(share - expected) < ACCEPTED
