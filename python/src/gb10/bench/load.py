"""Send requests side by side and time the answers, with the code behind ``vllm bench serve``.

That command cannot be called as it is: its warm-up repeats the first prompt, which is in the prefix cache
then, its files of prompts need pandas, and each call imports vLLM anew. So `benchmark` is.
"""

import asyncio
import contextlib
import io
import logging
import math
import os
import ssl
import warnings
from collections.abc import Sequence
from typing import Any

from gb10.bench.results import Drafts, Repeat, Request
from gb10.bench.target import PATHS, Target
from gb10.bench.watch import Limits, Watch, watched
from gb10.errors import UserError

_LEVEL = "VLLM_LOGGING_LEVEL"


def prepare() -> None:
    """Import vLLM's client, which takes some seconds. Raises UserError where there is no vLLM."""
    logging.disable(logging.WARNING)
    given = os.environ.get(_LEVEL)
    os.environ[_LEVEL] = given or "ERROR"
    try:
        import vllm.benchmarks.serve  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"gb10 bench uses vLLM's client, which cannot be imported here ({error}); run: nix run .#bench"
        ) from error
    finally:
        # It was for the import. Servers that are started say what they always say.
        if given is None:
            del os.environ[_LEVEL]


def repeat(
    target: Target, prompts: Sequence[str], output_tokens: int, *, chat: bool, label: str, limits: Limits
) -> Repeat:
    """Send all prompts at once and wait for all answers, each of exactly so many tokens.

    Raises UserError when one fails, hangs, is shorter, or comes in one piece. ``label`` names the point.
    """
    requests = []
    try:
        answers = asyncio.run(_watched(target, prompts, output_tokens, chat, label, limits))
        for at in range(len(prompts)):
            if error := answers["errors"][at]:
                raise UserError(f"{target.url} failed in the middle: {_last_line(error)}; its log says why")
            requests.append(_request(target, answers, at, output_tokens))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # vLLM's client believes what it is told.
        raise UserError(
            f"{target.url} sends what no server with OpenAI's API sends ({type(error).__name__}: "
            f"{_last_line(str(error))}); nothing can be measured"
        ) from None
    return Repeat(tuple(requests), _drafts(answers))


def _last_line(error: str) -> str:
    return next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "no answer")[:200]


def _request(target: Target, answers: dict[str, Any], at: int, wanted: int) -> Request:
    given = answers["output_lens"][at]
    if given != wanted:
        raise UserError(
            f"{target.url} gave {given} tokens where {wanted} were asked for: it ended in the middle, or a "
            "shorter context or a stop word of its own ends answers; these speeds would not compare"
        )
    between = tuple(map(float, answers["itls"][at]))
    first = float(answers["ttfts"][at])
    if not (math.isfinite(first) and first > 0 and sum(between) > 0):
        raise UserError(
            f"{target.url} gives its answers in one piece: it does not stream, or a proxy keeps them"
        )
    return Request(int(answers["input_lens"][at]), given, float(answers["start_times"][at]), first, between)


def _drafts(answers: dict[str, Any]) -> Drafts | None:
    if not answers.get("spec_decode_num_drafts"):
        return None
    return Drafts(
        answers["spec_decode_num_drafts"],
        answers["spec_decode_draft_tokens"],
        answers["spec_decode_accepted_tokens"],
        tuple(map(float, answers["spec_decode_per_position_acceptance_rates"])),
    )


async def _watched(
    target: Target, prompts: Sequence[str], tokens: int, chat: bool, label: str, limits: Limits
) -> dict[str, Any]:
    """Ends all requests when one hangs or the user interrupts: nothing of them is left."""
    from vllm.benchmarks import serve

    watch = Watch(target.url, label, prompts, limits)
    with watched(serve, watch):
        work = asyncio.create_task(_benchmark(target, prompts, tokens, chat))
        try:
            await asyncio.wait((work, watch.hung), return_when=asyncio.FIRST_COMPLETED)
            if watch.hung.done():
                raise watch.hung.result()
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await watch.close()


async def _benchmark(target: Target, prompts: Sequence[str], tokens: int, chat: bool) -> dict[str, Any]:
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    context: ssl.SSLContext | bool | None = None
    if target.url.startswith("https:"):
        context = not target.insecure
    requests = [SampleRequest(prompt=text, prompt_len=0, expected_output_len=tokens) for text in prompts]
    # It prints a report of its own.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Any] = await benchmark(
            task_type=TaskType.GENERATION,
            endpoint_type="openai-chat" if chat else "openai",
            api_url=target.url + PATHS[chat],
            base_url=target.url,
            model_id=target.model,
            model_name=target.model,
            tokenizer=None,
            input_requests=requests,
            logprobs=None,
            request_rate=math.inf,
            burstiness=1.0,
            disable_tqdm=True,
            num_warmups=0,
            profile=False,
            selected_percentile_metrics=["ttft"],
            selected_percentiles=[50.0],
            ignore_eos=True,
            goodput_config_dict={},
            max_concurrency=len(prompts),
            lora_modules=None,
            extra_headers=dict(target.headers),
            extra_body={"temperature": 0},
            ready_check_timeout_sec=0,
            ssl_context=context,
        )
    return found
