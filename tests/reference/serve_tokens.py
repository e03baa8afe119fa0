"""Run vLLM on token ids and print what it gave, as JSON. A program of its own: a process has one NVFP4 mode.

Reads a job from standard input, or a list of jobs, which run one after the other:
{"engine": {...arguments of vllm.LLM}, "prompts": [[id, ...], ...], "max_tokens": N}.
The prompts run together; those of "alone", if it is there, come after them, one at a time.
Writes to the file named by its one argument, for each job:
{"prompts": [{"tokens": [...], "logprobs": [...], "prompt_logprobs": [...], "prompt_top": [...]}, ...]}.
`prompt_logprobs` has one number per prompt token but the first; `prompt_top` the token vLLM finds likeliest.
GB10_TEST_INSTALL names modules whose `install` is called first.
With drafts the answer has "drafts": [number proposed, number accepted]. "dispatched" is the record of our
engine: [operation, kernel, tokens of the first run] each; with tensor parallelism a list of them, by rank.
"lengths", on stand-ins for the kernels: what sequences had to verify in one call, where that differed.
"""

import gc
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# In-process: no engine process to start and to wait for.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# As `gb10 serve` does for eager engines: no C++ compiler is needed.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def main() -> None:
    run(json.load(sys.stdin), Path(sys.argv[1]))


def run(job: Any, file: Path) -> None:
    """Run a job or a list of jobs, and write what they gave."""
    from gb10.vllm_plugin import register
    from reference import lean

    # With gb10 installed vLLM has done this already through the entry point. Twice is harmless.
    if os.environ.get("VLLM_PLUGINS") != "":
        register()
    for name in os.environ.get("GB10_TEST_INSTALL", "").split():
        importlib.import_module(name).install()
    lean.install()
    answer = [_answer(each) for each in job] if isinstance(job, list) else _answer(job)
    file.write_text(json.dumps(answer), encoding="utf-8")


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    from gb10.vllm_plugin.cuda import dispatch
    from reference import lean

    # vLLM collects garbage nine times per engine, and would look at all that was ever imported each time.
    lean.freeze()
    dispatch._seen.clear()
    stand_ins = sys.modules.get("reference.cpu_operators")
    if stand_ins is not None:
        stand_ins.lengths.clear()
    drafts = "speculative_config" in job["engine"]
    ranks = job["engine"].get("tensor_parallel_size", 1)
    more = {"worker_extension_cls": "reference.ranks.Rank"} if ranks > 1 else {}
    engine = LLM(disable_log_stats=not drafts, **job["engine"], **more)
    sampling = SamplingParams(
        temperature=0,
        max_tokens=job["max_tokens"],
        ignore_eos=True,
        logprobs=1,
        prompt_logprobs=1,
        detokenize=False,
    )
    outputs = []
    for together in (job["prompts"], *([tokens] for tokens in job.get("alone", []))):
        prompts = [{"prompt_token_ids": tokens} for tokens in together]
        outputs += engine.generate(prompts, sampling, use_tqdm=False)
    answer: dict[str, Any] = {"prompts": [_prompt(output) for output in outputs]}
    if drafts:
        counts = {metric.name: getattr(metric, "value", None) for metric in engine.get_metrics()}
        answer["drafts"] = [counts[f"vllm:spec_decode_num_{what}_tokens"] for what in ("draft", "accepted")]
    if ranks > 1:
        answer["dispatched"] = engine.llm_engine.collective_rpc("gb10_dispatched")
    else:
        answer["dispatched"] = [list(vars(one).values()) for one in dispatch.record()]
    if stand_ins is not None:
        answer["lengths"] = sorted(stand_ins.lengths)
    # The next job's engine starts like the first.
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return answer


def _prompt(output: Any) -> dict[str, list[Any]]:
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    after_first = list(zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True))
    return {
        "tokens": tokens,
        "logprobs": [step[token].logprob for token, step in zip(tokens, completion.logprobs, strict=True)],
        "prompt_logprobs": [step[token].logprob for token, step in after_first],
        "prompt_top": [_top(step) for _, step in after_first],
    }


def _top(step: dict[int, Any]) -> int:
    return max(step, key=lambda token: step[token].logprob)


if __name__ == "__main__":
    main()
