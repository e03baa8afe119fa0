"""One engine in this process, and what is measured on it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gb10.errors import UserError
from gb10_lab.engine_bench import profile, resident, weights
from gb10_lab.engine_bench.configurations import Configuration
from gb10_lab.engine_bench.figures import Sample, decode_rate

PROMPT = 128
PREFILL = 8192
LONGEST = PREFILL + 256
SHORT_LONG = {1: (16, 144)}
"""New tokens of the two generations whose difference is timed; for larger batches `OTHERS`."""
OTHERS = (8, 72)
REPLAYS = 20
WARM_STEPS = 4
FORCED, FREE = 16, 32
"""New tokens of `log_probabilities`: told which, and free."""
ENGINE: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "max_model_len": LONGEST,
    "max_num_batched_tokens": PREFILL,
    "max_num_seqs": 16,
    "max_logprobs": 64,
    "kv_cache_memory_bytes": 4 << 30,
    "gpu_memory_utilization": 0.9,
    "enable_prefix_caching": False,
    "use_tqdm_on_load": False,
    "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16]},
    # Not among what a GPU machine without network has; and no warm-up of kernels that are never called.
    "gdn_prefill_backend": "triton",
    "kernel_config": {"enable_jit_warmup": False},
}
"""The same for every configuration. Sizes are fixed, so that no start measures memory."""


def prepare(configuration: Configuration) -> None:
    """Set the environment that vLLM reads at import: engine in this process, no network, no FlashInfer."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Several ranks are asked what they ran, by a function of ours.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **configuration.environment,
    }
    # Ranks in processes of their own fill their weights likewise, where the distribution names it.
    os.environ["VLLM_PLUGINS"] += ",gb10-lab-weights"


class _Watched:
    """Stands for a CUDA graph: notes when it is replayed, and does it unless ``idle``."""

    def __init__(self, graph: Any, session: Session, idle: bool) -> None:
        self.graph, self._session, self._idle = graph, session, idle

    def replay(self) -> None:
        self._session.replayed.append((time.perf_counter(), self.graph))
        if not self._idle:
            self.graph.replay()


class Session:
    """vLLM with one configuration; `prepare` comes first."""

    def __init__(self, model: Path, configuration: Configuration, extra: dict[str, Any]) -> None:
        """Start it. Raises UserError when gb10 was asked for and did not load."""
        from vllm import LLM, SamplingParams

        weights.install()
        self._sampling = SamplingParams
        self._llm = LLM(model=str(model), **arguments(configuration, extra))
        self._ranks = self._llm.llm_engine.vllm_config.parallel_config.world_size
        self.replayed: list[tuple[float, Any]] = []
        if not configuration.is_stock and "gb10.vllm_plugin.patches" not in sys.modules:
            raise UserError(
                "vLLM did not load gb10's plug-in: its distribution (entry point) is not on PYTHONPATH"
            )

    @property
    def _runner(self) -> Any:
        if self._ranks > 1:
            raise UserError("several ranks run in processes of their own; take --do decode prefill logp")
        return self._llm.collective_rpc(lambda worker: worker.model_runner)[0]

    def arguments(self) -> dict[str, Any]:
        """What vLLM made of the arguments, as far as it decides speed."""
        config = self._llm.llm_engine.vllm_config
        parallel = config.parallel_config
        return {
            "runner": self._llm.collective_rpc(_runner)[0],
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "nodes": parallel.nnodes,
            "async_scheduling": config.scheduler_config.async_scheduling,
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
            "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "kv_cache_dtype": config.cache_config.cache_dtype,
        }

    def generate(self, batch: int, tokens: int, length: int = PROMPT, seed: int = 0) -> float:
        """Seconds for ``batch`` prompts of ``length`` ids and ``tokens`` greedy new tokens each."""
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids(batch, length, seed)]
        sampling = self._sampling(max_tokens=tokens, ignore_eos=True, temperature=0, detokenize=False)
        _wait()
        began = time.perf_counter()
        self._llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - began

    def decode(self, batch: int, repeats: int) -> dict[str, Any]:
        """Tokens a second of ``batch`` requests, milliseconds between steps, and the CUDA graph alone."""
        few, many = SHORT_LONG.get(batch, OTHERS)
        rates, noise = [], 0
        with self._watched():
            self.generate(batch, few)
            self.replayed.clear()
            gaps: list[float] = []
            for _ in range(repeats):
                shorter = self.generate(batch, few)
                self.replayed.clear()
                longer = self.generate(batch, many)
                gaps += self._gaps()
                try:
                    rates.append(decode_rate(batch, (few, many), (shorter, longer)))
                except ValueError:
                    noise += 1
            graph = self.replayed[-1][1] if self.replayed else None
        return {
            "batch": batch,
            "tokens_per_second": asdict(Sample.of(rates)),
            "not_counted": noise,
            "step_ms": asdict(Sample.of(gaps)) if gaps else None,
            "graph_ms": asdict(_replay(graph, repeats)) if graph is not None else None,
        }

    def host_floor(self, batch: int) -> dict[str, Any] | None:
        """Milliseconds between steps whose CUDA graph is not replayed: what the processor needs.

        What runs outside of the graph (preparation, head, sampler) still runs; its tokens are noise.
        """
        with self._watched(idle=True):
            self.generate(batch, OTHERS[0])
            gaps: list[float] = []
            for _ in range(3):
                self.replayed.clear()
                self.generate(batch, SHORT_LONG[1][1])
                gaps += self._gaps()
        return {"batch": batch, "step_ms": asdict(Sample.of(gaps))} if gaps else None

    def prefill(self, repeats: int) -> dict[str, Any]:
        """Tokens a second of one prompt of 8192 tokens and its first token, other ids each time."""
        seconds = [self.generate(1, 1, PREFILL, seed + 1) for seed in range(repeats + 1)][1:]
        return {"tokens": PREFILL, "tokens_per_second": asdict(Sample.of([PREFILL / s for s in seconds]))}

    def profile(self, batch: int, tokens: int = 24) -> list[profile.Event]:
        """What ran on the GPU in one generation, by torch's profiler."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as recording

        self.generate(batch, OTHERS[0], seed=9)
        with recording(activities=[ProfilerActivity.CUDA]) as recorded:
            self.generate(batch, tokens, seed=9)
            _wait()
        return profile.events_of(recorded.profiler.kineto_results)

    def resident(self) -> tuple[list[resident.Component], int]:
        """The model's parts and what of them a token reads; bytes of GDN state that it reads and writes."""
        runner = self._runner
        config = runner.vllm_config.model_config.hf_text_config
        dtype = runner.vllm_config.cache_config.mamba_ssm_cache_dtype
        element = 4 if dtype == "float32" else 2
        parts = resident.components(runner.model, config, runner.device.type)
        return parts, resident.state_bytes(config, element)

    def log_probabilities(self, vocabulary: int) -> dict[str, Any]:
        """Log-probabilities of the same 64 ids at steps of decoding that go on with the same token.

        Each request is told its next tokens (one id, again and again), so that configurations are compared on
        the same text also after rounding would have chosen another. And what greedy decoding gives when free.
        """
        watched = sorted({1 + (vocabulary - 2) * i // 63 for i in range(64)})
        forced = [101, 977, 4099 % vocabulary, 5000 % vocabulary]
        prompts = prompt_ids(len(forced), 64, seed=77, vocabulary=vocabulary)
        sampling = [
            self._sampling(
                max_tokens=FORCED,
                ignore_eos=True,
                temperature=0,
                detokenize=False,
                allowed_token_ids=[token],
                logprob_token_ids=watched,
            )
            for token in forced
        ]
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        found = [
            [[step[token].logprob for token in watched] for step in output.outputs[0].logprobs]
            for output in outputs
        ]
        plain = self._sampling(max_tokens=FREE, ignore_eos=True, temperature=0, detokenize=False)
        free = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], plain, use_tqdm=False)
        return {
            "ids": watched,
            "forced": forced,
            "log_probabilities": found,
            "greedy": [list(output.outputs[0].token_ids) for output in free],
        }

    def prompt_logits(self, ids: list[int], piece: int) -> torch.Tensor:
        """Logits after each of ``ids`` but the last, float32 ``[len(ids) - 1, vocabulary]``.

        ``piece``: how many tokens at a time, 0: all at once. Not more than one token may be left over.
        """
        scheduler = self._llm.llm_engine.engine_core.engine_core.scheduler
        model, rows = self._runner.model, []
        original = model.compute_logits

        def compute(hidden: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
            logits: torch.Tensor = original(hidden, *given, **named)
            # One row is that of the next token, which every step computes.
            if hidden.shape[0] > 1:
                rows.append(logits.to(torch.float32, copy=True))
            return logits

        most = scheduler.max_num_scheduled_tokens
        model.compute_logits = compute
        scheduler.max_num_scheduled_tokens = piece or most
        try:
            asked = self._sampling(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0)
            self._llm.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)
        finally:
            scheduler.max_num_scheduled_tokens = most
            del model.compute_logits
        found = torch.cat(rows)[: len(ids) - 1]
        if piece and max(row.shape[0] for row in rows) > piece:
            raise RuntimeError(f"the prompt did not come in pieces of {piece} tokens")
        if found.shape[0] != len(ids) - 1:
            raise RuntimeError(f"{found.shape[0]} rows of logits for {len(ids) - 1} tokens")
        return found

    def dispatched(self) -> list[str]:
        """What gb10 recorded of the first run of each operation, on any rank; empty for stock."""
        each: list[list[str]] = self._llm.collective_rpc(_dispatched)
        return list(dict.fromkeys(line for lines in each for line in lines))

    def peak_bytes(self) -> int | None:
        """The most that torch had allocated on one GPU."""
        return max((peak for peak in self._llm.collective_rpc(_peak_bytes) if peak is not None), default=None)

    @contextmanager
    def _watched(self, idle: bool = False) -> Iterator[None]:
        """Have replays of whole-model CUDA graphs noted, or with ``idle`` left out."""
        # The graphs of several ranks are in other processes.
        manager = getattr(self._runner, "cudagraph_manager", None) if self._ranks == 1 else None
        if manager is None:
            yield
            return
        graphs = dict(manager.graphs)
        try:
            manager.graphs.update({key: _Watched(graph, self, idle) for key, graph in graphs.items()})
            yield
        finally:
            manager.graphs.update(graphs)

    def _gaps(self) -> list[float]:
        """Milliseconds between the replays noted, without the first steps."""
        times = [at for at, _ in self.replayed[WARM_STEPS:]]
        return [1e3 * (after - before) for before, after in pairwise(times)]


def arguments(configuration: Configuration, extra: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``vllm.LLM``, the model's but for its folder; the later ones win."""
    return ENGINE | configuration.arguments | extra


def join(model: Path, configuration: Configuration, extra: dict[str, Any]) -> None:
    """Be a node of an engine on several, not the first one, until that ends; `prepare` comes first."""
    import vllm
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    weights.install()
    given = vllm.EngineArgs(model=str(model), **arguments(configuration, extra))
    executor = MultiprocExecutor(given.create_engine_config(headless=True), monitor_workers=False)
    executor.start_worker_monitor(inline=True)


def prompt_ids(batch: int, length: int, seed: int, vocabulary: int = 1100) -> list[list[int]]:
    """``batch`` different prompts of ``length`` ids, from 100 up."""
    span = min(1000, vocabulary - 101)
    return [[(7 * i + 13 * j + 101 * seed) % span + 100 for i in range(length)] for j in range(batch)]


# What a rank is asked; with several the answers come from other processes.
def _runner(worker: Any) -> str:
    return type(worker.model_runner).__module__


def _dispatched(_worker: Any) -> list[str]:
    module = sys.modules.get("gb10.vllm_plugin.cuda.dispatch")
    return [each.line for each in module.record()] if module else []


def _peak_bytes(_worker: Any) -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _replay(graph: Any, repeats: int) -> Sample:
    """Milliseconds of a CUDA graph, replayed 20 times in a row."""
    times = []
    graph.replay()
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / REPLAYS)
    return Sample.of(times)
