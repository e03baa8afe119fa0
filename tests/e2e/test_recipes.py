"""Each recipe's architecture as a tiny random checkpoint on vLLM's CPU engine, against transformers' model.

transformers makes the checkpoint, so its tensors have the names and shapes that a published one has; in BF16,
without drafts and without a template. What vLLM's CPU platform cannot run is named with vLLM's own error.
"""

import importlib.util
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.compare import Served
from reference.forked import serve_tokens
from tokenizers import Tokenizer

from gb10 import recipes

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

VOCABULARY = 6144
MAX_TOKENS = 8
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Nats, of the median: both round in another order, and near-ties of random routers fall another way."""

CANNOT = {
    "NemotronHForCausalLM": "is_act_and_mul=False is supported only for CUDA, XPU and ROCm for now",
    "Qwen4ExpForConditionalGeneration": "pin_memory=True requires a CUDA or other accelerator backend",
}
"""vLLM's own error on the CPU."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GDN: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}
_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3_5MoeForConditionalGeneration": (
        "qwen3_5_moe",
        {"text_config": {**_COMMON, **_GDN, **_EXPERTS}, "vision_config": _VISION},
    ),
    "Qwen3_5ForConditionalGeneration": (
        "qwen3_5",
        {"text_config": {**_COMMON, **_GDN, "intermediate_size": 256}, "vision_config": _VISION},
    ),
    "Qwen3NextForCausalLM": ("qwen3_next", {**_COMMON, **_GDN, **_EXPERTS, "intermediate_size": 256}),
    "NemotronHForCausalLM": (
        "nemotron_h",
        {
            **_COMMON,
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 64,
            "intermediate_size": 64,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 2,
            "conv_kernel": 4,
            "chunk_size": 64,
        },
    ),
    "GptOssForCausalLM": (
        "gpt_oss",
        {
            **_COMMON,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 128,
            "max_position_embeddings": 131072,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Qwen4ExpForConditionalGeneration": (
        "qwen4_exp",
        {
            "text_config": {
                **_COMMON,
                **_GDN,
                **_EXPERTS,
                "layer_types": ["linear_attention"] * 3 + ["indexed_attention"],
                "hc_count": 4,
                "hc_lowrank": 16,
                "ple_layer_ids": [1],
                "ple_embed_dim": 64,
                "ngram_size": 3,
                "heads_per_ngram": 2,
                "ngram_vocab_size_base": 500,
                "make_ngram_vocab_size_divisible_by": 8,
                "split_ngram_parts": 4,
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 64,
                "indexer_budget": 128,
                "indexer_compress_ratio": 16,
            },
            "vision_config": _VISION,
        },
    ),
}
"""The model type and a small configuration of each architecture."""

TEXTS = (
    "import os\nimport sys\n\ndef main(argv):\n    parser = argparse.",
    "A block scale covers sixteen values of a row.",
)


def _dtype(architecture: str) -> str:
    """vLLM's GDN kernels for the CPU are bfloat16 only."""
    return "float32" if architecture == "GptOssForCausalLM" else "bfloat16"


def write(folder: Path, architecture: str, tokenizer_from: Path, seed: int = 0) -> Any:
    """Write a checkpoint of random weights, with another model's tokenizer; the model that it is."""
    import transformers

    model_type, sizes = TINY[architecture]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    config.architectures = [architecture]
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)._from_config(
        config, dtype=getattr(torch, _dtype(architecture))
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "conv1d" not in name:
                # Wider than transformers' 0.02: a model whose every choice is as likely tells nothing.
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_from / name, folder / name)
    return model.eval()


def engine(folder: Path, architecture: str) -> dict[str, Any]:
    return {
        "model": str(folder),
        "dtype": _dtype(architecture),
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 64 * 2**20,
        "enable_prefix_caching": False,
        "language_model_only": True,
    }


def serve(folder: Path, architecture: str, prompts: list[list[int]], answer: Path) -> list[Served]:
    job = {"prompts": prompts, "max_tokens": MAX_TOKENS, "engine": engine(folder, architecture)}
    result = serve_tokens(job, answer, {"OMP_NUM_THREADS": "1"}, limit=240)
    return [Served(prompt=prompt, **one) for prompt, one in zip(prompts, result["prompts"], strict=True)]


def differences(model: Any, served: list[Served]) -> list[float]:
    """How far each token's log-probability is from the model's, in nats."""
    found = []
    for one in served:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one.read])).logits[0].float()
        known = torch.log_softmax(logits, -1)
        for place, (token, given) in enumerate(zip(one.followers, one.follower_logprobs, strict=True)):
            found.append(abs(float(known[place, token]) - given))
    return found


@pytest.fixture(scope="module")
def prompts(testbed: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(testbed / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= VOCABULARY
    return [tokenizer.encode(text).ids for text in TEXTS]


def test_each_architecture_of_a_recipe_is_here() -> None:
    assert {recipes.load(name).architecture for name in recipes.names()} == set(TINY)


@pytest.mark.parametrize("architecture", [name for name in TINY if name not in CANNOT])
def test_it_starts_and_says_what_transformers_says(
    architecture: str, prompts: list[list[int]], testbed: Path, tmp_path: Path
) -> None:
    """A control: the same model with other weights is far off."""
    other = write(tmp_path / "other", architecture, testbed, seed=1)
    model = write(tmp_path / "model", architecture, testbed)
    served = serve(tmp_path / "model", architecture, prompts, tmp_path / "answer.json")
    assert [len(one.tokens) for one in served] == [MAX_TOKENS] * len(prompts)
    off, control = differences(model, served), differences(other, served)
    found = {"architecture": architecture, "dtype": _dtype(architecture), "tokens": len(off)}
    found |= {"median": statistics.median(off), "max": max(off), "control": statistics.median(control)}
    print(json.dumps(found))
    tolerance = TOLERANCE[_dtype(architecture)]
    assert statistics.median(off) < tolerance
    assert statistics.median(control) > 10 * tolerance


@pytest.mark.parametrize("architecture", list(CANNOT))
def test_what_vllms_cpu_platform_cannot_run(
    architecture: str, prompts: list[list[int]], testbed: Path, tmp_path: Path
) -> None:
    write(tmp_path / "model", architecture, testbed)
    with pytest.raises(AssertionError, match="the engine failed") as caught:
        serve(tmp_path / "model", architecture, prompts, tmp_path / "answer.json")
    assert CANNOT[architecture] in str(caught.value)
