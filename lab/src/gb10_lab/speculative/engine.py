"""vLLM in this process, one engine at a time."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gb10.vllm_plugin import patches, register
from gb10.vllm_plugin.draft import vocabulary
from gb10.vllm_plugin.draft.ids import ENV_NAME
from gb10_lab.speculative.acceptance import Counters
from gb10_lab.speculative.equality import TOP, Completion
from gb10_lab.speculative.exactness import Scored

KV_CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class Settings:
    """What all engines of a run have in common."""

    model: Path
    concurrency: int
    """Requests at a time."""
    max_model_len: int
    graphs: bool = False
    """With torch.compile and CUDA graphs: a slow start, but the speed of serving."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More arguments of `vllm.LLM`; they win."""


def prepare(settings: Settings) -> None:
    """Set what vLLM reads at import: engine in this process, quiet, no compiler for eager engines."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not settings.graphs:
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
    # Each engine here has the draft vocabulary that it is told.
    os.environ.pop(ENV_NAME, None)
    # With gb10 installed vLLM does this through the entry point. Twice is harmless.
    register()
    patches.apply("draft")


class Engine:
    """One vLLM engine with `draft` MTP tokens, 0 for none. A context manager; `prepare` comes first."""

    def __init__(
        self, settings: Settings, draft: int, ids: Sequence[int] | None = None, **speculative: Any
    ) -> None:
        """Start it, with drafts of `ids` alone where some are given."""
        from vllm import LLM

        # vLLM collects garbage nine times per engine, and would look at all that was ever imported each time.
        gc.freeze()
        config = {"method": "mtp", "num_speculative_tokens": draft, **speculative}
        arguments: dict[str, Any] = {
            "model": str(settings.model),
            "enforce_eager": not settings.graphs,
            # Each prompt is to be computed in every pass; and stock vLLM cannot do it with MTP on a CPU.
            "enable_prefix_caching": False,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.concurrency,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "gpu_memory_utilization": 0.3,
            "skip_tokenizer_init": True,
            "disable_log_stats": False,
            "use_tqdm_on_load": False,
            "speculative_config": config if draft else None,
        }
        self._draft = draft
        with _draft_vocabulary(ids):
            self._llm = LLM(**(arguments | settings.extra))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_error: object) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        # The next engine needs the process groups and the memory of this one.
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def restrict(self, ids: Sequence[int] | None) -> None:
        """Draft only these tokens from now on; None: all."""
        self._llm.collective_rpc(_restrict, args=(ids,))

    def counters(self) -> Counters:
        """What the drafts have come to so far."""
        return Counters.read(self._llm.get_metrics())

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[tuple[int, ...]], float]:
        """Complete all prompts by `tokens` tokens; also the decoding speed in tokens per second.

        The speed is that of one request on average, from its first token to its last.
        """
        outputs = self.outputs(prompts, temperature=0, max_tokens=tokens)
        seconds = sum(output.metrics.last_token_ts - output.metrics.first_token_ts for output in outputs)
        speed = (tokens - 1) * len(outputs) / seconds if seconds else 0.0
        return [tuple(output.outputs[0].token_ids) for output in outputs], speed

    def reference(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Completion]:
        """Complete all prompts greedily and keep the log-probabilities of the likeliest tokens."""
        outputs = self.outputs(prompts, temperature=0, max_tokens=tokens, logprobs=TOP)
        return [completion(output) for output in outputs]

    def scored(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Scored]:
        """Complete all prompts greedily, with the log-probabilities of all tokens."""
        outputs = self.outputs(prompts, temperature=0, max_tokens=tokens, logprobs=0, prompt_logprobs=0)
        found = []
        for output in outputs:
            read, new = output.prompt_token_ids, output.outputs[0]
            steps = [*output.prompt_logprobs[1:], *new.logprobs]
            ids = (*read, *new.token_ids)
            given = (step[token].logprob for token, step in zip(ids[1:], steps, strict=True))
            found.append(Scored(ids, len(read), tuple(given)))
        return found

    def samples(
        self, prompt: Sequence[int], count: int, tokens: int, seed: int, **parameters: Any
    ) -> list[tuple[int, ...]]:
        """Draw `count` continuations of `tokens` tokens, with the seeds `seed`, `seed + 1`, ...

        At temperature 1, unless the sampling `parameters` say otherwise.
        """
        common = {"temperature": 1.0, "max_tokens": tokens} | parameters
        outputs = self.outputs([prompt] * count, [common | {"seed": seed + at} for at in range(count)])
        return [tuple(output.outputs[0].token_ids) for output in outputs]

    def outputs(
        self, prompts: Sequence[Sequence[int]], each: Sequence[dict[str, Any]] | None = None, **common: Any
    ) -> list[Any]:
        """Give vLLM's `RequestOutput` of each prompt, for sampling parameters of `each` and in `common`.

        Unless they say otherwise a completion has all its tokens, and no text.
        """
        from vllm import SamplingParams

        defaults = {"ignore_eos": True, "detokenize": False}
        parameters = [SamplingParams(**(defaults | own | common)) for own in each or [{}] * len(prompts)]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs: list[Any] = self._llm.generate(requests, parameters, use_tqdm=False)
        return outputs


def completion(output: Any) -> Completion:
    """Read a `RequestOutput` of a request with `logprobs`."""
    first = output.outputs[0]
    return Completion(
        tuple(first.token_ids),
        tuple({token: entry.logprob for token, entry in step.items()} for step in first.logprobs),
    )


@contextmanager
def _draft_vocabulary(ids: Sequence[int] | None) -> Iterator[None]:
    """Set the variable that a user would set, while an engine starts; leave it alone without `ids`."""
    if ids is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.json"
        file.write_text(json.dumps(list(ids)), encoding="utf-8")
        os.environ[ENV_NAME] = str(file)
        try:
            yield
        finally:
            del os.environ[ENV_NAME]


def _restrict(worker: Any, ids: Sequence[int] | None) -> None:
    """Runs in the worker. vLLM's two model runners name their drafter differently."""
    runner = worker.model_runner
    drafter = getattr(runner, "drafter", None) or runner.speculator
    vocabulary.restrict(drafter.model, ids)
