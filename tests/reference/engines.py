"""Runs vLLM's engines on token ids, in a process of their own (serve_tokens.py), and compares the answers."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

OPEN = math.log(0.75)
"""A token likelier than this was no near-tie."""

_BOTH: dict[str, Any] = {"dtype": "bfloat16", "enable_prefix_caching": False}
ON_CPU = _BOTH | {
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_batched_tokens": 256,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 64 * 2**20,
}
ON_GPU = _BOTH | {
    "max_model_len": 512,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 256 * 2**20,
    # FlashInfer's compiles at first use, from packages of its own.
    "gdn_prefill_backend": "triton",
}
"""Arguments of ``vllm.LLM`` for the trained model."""


def mtp(drafts: int) -> dict[str, Any]:
    """The argument for so many drafts of the model's own."""
    return {"speculative_config": {"method": "mtp", "num_speculative_tokens": drafts}}


def moved_on(ours: Any, other: Any) -> int:
    """In how many prompts ``ours`` has other new tokens: where they first differ ``other`` must be unsure.

    Both are answers of `serve_tokens`.
    """
    moved = 0
    for number, (one, two) in enumerate(zip(ours["prompts"], other["prompts"], strict=True)):
        pairs = zip(one["tokens"], two["tokens"], strict=True)
        place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        if place is not None:
            moved += 1
            said = math.exp(two["logprobs"][place])
            print(f"prompt {number}, new token {place}: the other engine gave its own {said:.2f}")
            assert said < math.exp(OPEN), f"prompt {number}, new token {place}: no near-tie ({said:.2f})"
    return moved


def differences(ours: Any, other: Any) -> list[float]:
    """By how much the log probabilities of the prompts' tokens differ, of each token."""
    return [
        abs(a - b)
        for one, two in zip(ours["prompts"], other["prompts"], strict=True)
        for a, b in zip(one["prompt_logprobs"], two["prompt_logprobs"], strict=True)
    ]


def on_path(variables: Mapping[str, str]) -> dict[str, str]:
    """These variables, for a program that reads this package."""
    path = os.pathsep.join((str(_TESTS), os.environ.get("PYTHONPATH", "")))
    return dict(variables) | {"PYTHONPATH": path}


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's variables and these, with what the programs here want beside them."""
    return on_path(dict(os.environ) | OFFLINE | dict(variables))


def serve_tokens(job: Any, answer: Path, variables: Mapping[str, str], limit: float = 300) -> Any:
    """What serve_tokens.py answers to ``job``, a job or a list of jobs. It goes through the file ``answer``.

    ``variables`` are added to this process's. ``limit`` is in seconds.
    """
    done = subprocess.run(
        [sys.executable, "-m", "reference.serve_tokens", str(answer)],
        input=json.dumps(job),
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    # pytest shows it when a test fails: what vLLM chose is in there.
    print(done.stdout[-6000:])
    assert done.returncode == 0, f"the engine failed ({dict(variables)})\n{done.stderr[-4000:]}"
    return json.loads(answer.read_text(encoding="utf-8"))
