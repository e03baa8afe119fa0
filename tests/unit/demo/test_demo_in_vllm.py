"""vLLM's own ModelOpt loader and engine on the demo checkpoints. Skipped where vLLM or lscpu is absent."""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gb10.demo import ARCHITECTURES, write_checkpoint

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(shutil.which("lscpu") is None, reason="vLLM's CPU platform needs lscpu on PATH"),
]

# A fresh process per engine: vLLM keeps global state.
PROGRAM = """
import json, sys
import gb10.vllm_plugin
gb10.vllm_plugin.register()
from vllm import LLM, SamplingParams

options = json.loads(sys.argv[1])
llm = LLM(enforce_eager=True, max_model_len=256, max_num_seqs=4, kv_cache_memory_bytes=2**26,
          disable_log_stats=False, **options)
chats = [[{"role": "user", "content": text}] for text in ("Hello", "What is a dataclass?")]
answers = llm.chat(chats, SamplingParams(temperature=0, max_tokens=24, logprobs=1), use_tqdm=False)
metrics = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
print("RESULT", json.dumps({
    "prompts": [answer.prompt for answer in answers],
    "texts": [answer.outputs[0].text for answer in answers],
    "tokens": [list(answer.outputs[0].token_ids) for answer in answers],
    "logprobs": [next(iter(step.values())).logprob for a in answers for step in a.outputs[0].logprobs],
    "drafts": metrics.get("vllm:spec_decode_num_draft_tokens", 0),
    "accepted": metrics.get("vllm:spec_decode_num_accepted_tokens", 0),
}))
"""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


def generate(folder: Path, dtype: str, **options: Any) -> dict[str, Any]:
    arguments = json.dumps({"model": str(folder), "dtype": dtype, **options})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == 1, f"vLLM failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def assert_sane(result: dict[str, Any]) -> None:
    assert result["prompts"][0] == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert [len(tokens) for tokens in result["tokens"]] == [24, 24]
    assert result["texts"][0] != result["texts"][1]
    assert all(text.isascii() and text.isprintable() for text in result["texts"])
    # Neither a flat distribution (-8.3 for 4096 tokens) nor NaN.
    assert all(math.isfinite(logprob) for logprob in result["logprobs"])
    assert -4 < sum(result["logprobs"]) / len(result["logprobs"]) < -0.01


def test_qwen3_moe_in_float32(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "demo", ARCHITECTURES["qwen3_moe"])
    result = generate(tmp_path / "demo", "float32")
    assert_sane(result)
    assert result["drafts"] == 0


def test_qwen3_next_with_its_mtp_head(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "demo", ARCHITECTURES["qwen3_next"])
    result = generate(
        tmp_path / "demo",
        "bfloat16",
        enable_prefix_caching=False,
        speculative_config={"method": "qwen3_next_mtp", "num_speculative_tokens": 2},
    )
    assert_sane(result)
    assert result["drafts"] > 0
    # The head knows the ring of tokens, so most of its drafts are right.
    assert result["accepted"] > result["drafts"] / 2
