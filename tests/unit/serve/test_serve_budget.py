"""Memory: the share that vLLM gets, the cache, and what is refused with which arithmetic."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from gb10 import routing
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.headers import Tensor
from gb10.errors import UserError
from gb10.machine import memory
from gb10.machine.gpu import Gpu
from gb10.serve import budget
from gb10.serve.settings import Settings, parse
from gb10.units import GIB, MIB
from gb10.vllm_plugin.cuda.settings import Format

TOTAL = 128_526_123_008
"""What a DGX Spark's driver says: 119.7 GiB."""
GB10 = Gpu("NVIDIA GB10", (12, 1), TOTAL, unified=True)
H200 = Gpu("NVIDIA H200", (9, 0), 141 * GIB, unified=False)
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
PER_TOKEN = 2 * 48 * 4 * 128 * 2


@pytest.fixture(autouse=True)
def clean(clean_environment: pytest.MonkeyPatch) -> None:
    """No variable of the machine counts."""


def gpu(
    weights: int, free: int, *argv: str, gpus: Sequence[Gpu] = (GB10,), **config: object
) -> tuple[Settings, list[str]]:
    """Settings and notes for ``weights`` bytes on a GPU while ``free`` bytes are free."""
    settings = parse(argv, dict(os.environ))
    found = checkpoint(weights, **config)
    free_ = memory.Available(free, "MemAvailable")
    target = routing.Target((12, 1), kv_cache=settings.kv_cache_dtype or "auto")
    return settings, budget.on_gpu(settings, found, target, gpus, free_)


def checkpoint(weights: int, **config: object) -> Checkpoint:
    tensors = (Tensor("w", "U8", (weights,), weights),) if weights else ()
    return Checkpoint("m", config={**CONFIG, **config}, tensors=tensors)


@pytest.mark.parametrize(
    ("weights", "free", "least", "most"),
    [
        (20, 112, 0.799, 0.8),
        (20, 60, 0.44, 0.46),  # less is free than the usual share
        (100, 112, 0.85, 0.886),  # more is needed than the usual share
        (0, 60, 0.44, 0.46),  # weights that are not known yet
    ],
)
def test_the_share_is_what_is_free_and_needed(weights: int, free: int, least: float, most: float) -> None:
    settings, notes = gpu(weights * GIB, free * GIB)
    share = settings.gpu_memory_utilization
    assert share is not None
    assert least <= share <= most
    # What vLLM computes (request_memory) fits, and leaves the host its part.
    asked = math.ceil(TOTAL * share)
    assert weights * GIB + 2 * GIB < asked <= free * GIB - TOTAL // 20
    assert any(f"{free}.0 GiB is free (MemAvailable)" in note and "6.4 GiB stays" in note for note in notes)


def test_a_context_that_cannot_fit_is_left_to_vllm_and_said() -> None:
    settings, notes = gpu(100 * GIB, 112 * GIB)
    assert settings.max_model_len == "auto"
    assert any(
        "what fits of the model's 40960 tokens, about 39045: 3.6 GiB is left" in note for note in notes
    )
    settings, notes = gpu(80 * GIB, 112 * GIB)
    assert settings.max_model_len is None


@pytest.mark.parametrize(
    ("weights", "free", "message"),
    [
        (
            108,
            112,
            r"m needs about 110\.4 GiB \(weights 108\.0 GiB, KV cache 384 MiB, vLLM 2\.0 GiB\) and 105\.6 "
            r"GiB of 119\.7 GiB unified memory can be had: 112\.0 GiB is free \(MemAvailable\), 6\.4 GiB",
        ),
        (20, 25, r"18\.6 GiB of 119\.7 GiB unified memory can be had: 25\.0 GiB is free"),
        (0, 6, r"needs about 2\.4 GiB"),
    ],
)
def test_what_cannot_fit_is_refused_with_its_arithmetic(weights: int, free: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        gpu(weights * GIB, free * GIB)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "variables", "weights", "free", "message"),
    [
        (
            ["--gpu-memory-utilization", "0.9"],
            {},
            20,
            60,
            r"--gpu-memory-utilization 0\.9 of 119\.7 GiB is 107\.7 GiB, and 60\.0 GiB is free "
            r"\(MemAvailable\); give at most 0\.448",
        ),
        ([], {"GPU_MEMORY_UTIL": "0.9"}, 20, 60, r"GPU_MEMORY_UTIL 0\.9 of 119\.7 GiB"),
        (
            [],
            {"VLLM_EXTRA_ARGS": "--gpu-memory-utilization 0.9"},
            20,
            60,
            r"--gpu-memory-utilization \(in VLLM_EXTRA_ARGS\) 0\.9 of",
        ),
        (
            ["--gpu-memory-util", "0.8"],
            {},
            100,
            112,
            r"needs about 102\.4 GiB .* and --gpu-memory-utilization 0\.8 of 119\.7 GiB is 95\.8 GiB; "
            r"give at least 0\.856",
        ),
        (["--max-model-len", "40k"], {}, 101, 112, r"--max-model-len 28\d\d\d would fit"),
        ([], {"MAX_MODEL_LEN": "40k"}, 101, 112, r"MAX_MODEL_LEN 28\d\d\d would fit"),
        (["--kv-cache-memory-bytes", "20G"], {}, 90, 112, r"KV cache 20\.0 GiB"),
    ],
)
def test_what_the_user_gives_is_judged_and_named(
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    variables: dict[str, str],
    weights: int,
    free: int,
    message: str,
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=message):
        gpu(weights * GIB, free * GIB, *argv)


def test_a_share_that_leaves_the_host_too_little_is_said() -> None:
    settings, notes = gpu(20 * GIB, 112 * GIB, "--gpu-memory-utilization", "0.89")
    assert settings.gpu_memory_utilization == 0.89
    assert any(
        "leaves 5.5 GiB for the host" in note and "less than 3.0 GiB requests" in note for note in notes
    )


def test_a_share_that_leaves_less_than_the_watch_wants_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        r"112\.0 GiB is free \(MemAvailable\), 4\.5 GiB of it for vLLM's processes and GB10_MEMORY_STOP; give"
    )
    with pytest.raises(UserError, match=message):
        gpu(20 * GIB, 112 * GIB, "--gpu-memory-utilization", "0.93")
    monkeypatch.setenv("GB10_MEMORY_STOP", "off")
    settings, notes = gpu(20 * GIB, 112 * GIB, "--gpu-memory-utilization", "0.93")
    assert settings.gpu_memory_utilization == 0.93
    assert any("leaves 696 MiB for the host" in note for note in notes)


def test_what_a_share_means_is_said() -> None:
    _, notes = gpu(20 * GIB, 112 * GIB, "--gpu-memory-utilization", "0.5")
    assert any("0.5 of 119.7 GiB is 59.8 GiB: all that vLLM takes on the GPU" in note for note in notes)
    share = ("--gpu-memory-utilization", "0.5", "--kv-cache-memory-bytes", "4G")
    _, notes = gpu(20 * GIB, 112 * GIB, *share)
    said = "--gpu-memory-utilization 0.5 does not size the KV cache, since --kv-cache-memory-bytes does"
    assert any(said in note for note in notes)
    _, notes = cpu(PACKED, 16 * GIB, *share)
    assert any(f"{said}; vLLM does not look at it" in note for note in notes)
    _, notes = gpu(20 * GIB, 112 * GIB, "--kv-cache-memory-bytes", "4G")
    assert not any("does not size" in note for note in notes)


def test_sequences_that_find_no_room_are_told() -> None:
    _, notes = gpu(90 * GIB, 112 * GIB, "--max-num-seqs", "8", "--gpu-memory-utilization", "0.88")
    # 105.3 GiB less 92, at 3.75 GiB each.
    assert any("the KV cache holds 3 sequences of 40960 tokens" in note for note in notes)
    assert any("--max-num-seqs 8 would take 30.0 GiB: the others wait" in note for note in notes)
    for argv in (["--max-num-seqs", "1"], []):
        assert not any("sequences" in note for note in gpu(90 * GIB, 112 * GIB, *argv)[1])
    held = ("--max-num-seqs", "8", "--max-model-len", "4096", "--kv-cache-memory-bytes", "1G")
    for _, notes in (gpu(20 * GIB, 112 * GIB, *held), cpu(PACKED, 16 * GIB, *held)):
        assert any(
            "holds 2 sequences of 4096 tokens, --max-num-seqs 8 would take 3.0 GiB" in n for n in notes
        )
    _, notes = cpu(PACKED, 16 * GIB, "--max-num-seqs", "4")
    assert not any("sequences" in note for note in notes)


def test_what_the_watch_wants_is_kept_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fills a cgroup of 8 GiB would be a server that takes no requests."""
    group = memory.Available(7 * GIB, "memory.max", 8 * GIB)
    found = Checkpoint("m", config=CONFIG, tensors=PACKED)

    def start() -> Settings:
        settings = parse([], dict(os.environ))
        budget.on_cpu(settings, found, routing.Target(None, dtype="bfloat16"), 4096, group)
        return settings

    assert start().kv_cache_memory_bytes == GIB - 288 * MIB
    monkeypatch.setenv("GB10_MEMORY_SHED", "off")
    assert start().kv_cache_memory_bytes == GIB - 128 * MIB
    monkeypatch.setenv("GB10_MEMORY_STOP", "off")
    assert start().kv_cache_memory_bytes == GIB


def _most(error: pytest.ExceptionInfo[UserError], name: str) -> str:
    """The level that a refusal says would do."""
    found = re.search(rf"set {name} to at most (\d+M), or free memory$", str(error.value))
    assert found is not None, error.value
    return found[1]


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"GB10_MEMORY_SHED": "100G"}, "GB10_MEMORY_SHED"),
        ({"GB10_MEMORY_SHED": "6G"}, "GB10_MEMORY_SHED"),  # less than is free, and the model wants it
        ({"GB10_MEMORY_STOP": "100G"}, "GB10_MEMORY_STOP"),
        ({"GB10_MEMORY_STOP": "100G", "GB10_MEMORY_SHED": "off"}, "GB10_MEMORY_STOP"),
    ],
)
@pytest.mark.parametrize("case", ["cpu", "cpu with a share", "unified", "unified with a share", "own"])
def test_a_level_that_cannot_hold_is_named_with_one_that_can(
    case: str, variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that one starts. (The model is not at fault, nor is the share.)"""
    argv = ["--gpu-memory-utilization", "0.125"] if "share" in case else []
    host = memory.Available(7 * GIB, "memory.max", 8 * GIB)
    monkeypatch.setattr(memory, "total", lambda: 32 * GIB)

    def start() -> None:
        settings = parse(argv, dict(os.environ))
        found = Checkpoint("m", config=CONFIG, tensors=PACKED[:1])
        if case.startswith("cpu"):
            budget.on_cpu(settings, found, routing.Target(None, dtype="bfloat16"), 64, host)
            return
        card = replace(GB10, memory=32 * GIB) if case.startswith("unified") else H200
        free = memory.Available(16 * GIB, "MemAvailable") if card.unified else host
        budget.on_gpu(settings, found, routing.Target(card.capability), [card], free)

    start()
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    if variables[name] == "6G" and case != "own":
        monkeypatch.setenv(name, "12G" if "unified" in case else "6G")
    with pytest.raises(UserError, match=rf"^{name} \S+ GiB does not fit: ") as caught:
        start()
    monkeypatch.setenv(name, _most(caught, name))
    start()


def test_a_level_is_not_blamed_for_a_model_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GB10_MEMORY_SHED", "100G")
    message = r"^not enough memory: .* 4\.0 GiB is free \(memory\.max\), 4\.0 GiB of it stays so .*less$"
    with pytest.raises(UserError, match=message):
        settings = parse([], dict(os.environ))
        found = Checkpoint("m", config=CONFIG, tensors=PACKED)
        group = memory.Available(4 * GIB, "memory.max", 8 * GIB)
        budget.on_cpu(settings, found, routing.Target(None, dtype="bfloat16"), 4096, group)


def test_a_layers_requantisation_counts_where_the_cache_is_smaller() -> None:
    """It is over before the cache is made. A head of 151936 x 8192 has 2.3 GiB in 16 bit."""
    head = Tensor("lm_head.weight", "BF16", (151936, 8192), 2 * 151936 * 8192)
    found = Checkpoint("m", config={**CONFIG, "quantization_config": {}}, tensors=(head,))
    target = routing.Target((12, 1), head=Format.FP8)

    def start(free: int, *argv: str) -> list[str]:
        free_ = memory.Available(free, "MemAvailable")
        return budget.on_gpu(parse(argv, {}), found, target, [GB10], free_)

    said = r"weights 1\.2 GiB, a layer in 16 bit while it is requantised 2\.6 GiB, vLLM 2\.0 GiB"
    with pytest.raises(UserError, match=said):
        start(11 * GIB)
    assert any("KV cache 3.8 GiB" in note for note in start(14 * GIB, "--max-model-len", "40960"))
    with pytest.raises(UserError, match=said) as caught:
        start(11 * GIB, "--max-model-len", "8192")
    assert "would fit" not in str(caught.value)


def test_a_given_cache_does_not_leave_vllms_own_share() -> None:
    """vLLM compares its share with what is free even where the cache's size is given."""
    settings, _ = gpu(20 * GIB, 60 * GIB, "--kv-cache-memory-bytes", "4G")
    assert settings.gpu_memory_utilization is not None
    assert math.ceil(TOTAL * settings.gpu_memory_utilization) <= 60 * GIB
    assert settings.max_model_len is None


def test_a_given_cache_must_hold_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"--kv-cache-memory-bytes: a KV cache of 1\.0 GiB holds 10922 tokens, and the context of 20000"
    with pytest.raises(UserError, match=message):
        gpu(20 * GIB, 60 * GIB, "--kv-cache-memory-bytes", "1G", "--max-model-len", "20k")
    settings, notes = gpu(20 * GIB, 60 * GIB, "--kv-cache-memory-bytes", "1G")
    assert settings.max_model_len == "auto"
    assert any("of the model's 40960 tokens, about 10922" in note for note in notes)
    # Types of which we do not know the size are vLLM's to judge.
    gpu(
        20 * GIB,
        60 * GIB,
        "--kv-cache-memory-bytes",
        "1G",
        "--max-model-len",
        "20k",
        "--kv-cache-dtype",
        "nvfp4",
    )
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with pytest.raises(UserError, match=r"VLLM_CPU_KVCACHE_SPACE: a KV cache of 1\.0 GiB holds 10922 tokens"):
        cpu(PACKED, 16 * GIB, tokens=11_000)


def test_a_driver_that_does_not_know_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi says [N/A] on a GB10."""
    monkeypatch.setattr(memory, "total", lambda: TOTAL)
    unknown = Gpu("NVIDIA GB10", (12, 1), 0, unified=True)
    settings, _ = gpu(20 * GIB, 60 * GIB, gpus=[unknown])
    assert settings.gpu_memory_utilization == gpu(20 * GIB, 60 * GIB)[0].gpu_memory_utilization


@pytest.mark.parametrize(
    ("argv", "fits"),
    [
        ([], False),
        (["-tp", "2"], True),
        (["--pipeline-parallel-size", "2"], True),
        (["--cpu-offload-gb", "40"], True),
    ],
)
def test_a_gpu_with_memory_of_its_own(argv: list[str], fits: bool) -> None:
    if fits:
        settings, notes = gpu(140 * GIB, GIB, *argv, gpus=[H200, H200])
        assert settings.gpu_memory_utilization is None
        assert any(note.startswith("memory  needs") for note in notes)
    else:
        with pytest.raises(
            UserError, match=r"0\.92 of NVIDIA H200 is 129\.7 GiB; use a smaller model, or more GPUs"
        ):
            gpu(140 * GIB, GIB, *argv, gpus=[H200])


def test_a_gpu_that_is_partly_taken() -> None:
    """vLLM's 0.92 of 141 GiB would be more than is free."""
    taken = replace(H200, free=100 * GIB)
    settings, notes = gpu(20 * GIB, GIB, "-tp", "2", gpus=[H200, taken])
    assert settings.gpu_memory_utilization == 0.702
    assert any("of 141.0 GiB 100.0 GiB is free" in note for note in notes)
    with pytest.raises(UserError, match=r"--gpu-memory-utilization 0\.9 of 141\.0 GiB .* 100\.0 GiB is free"):
        gpu(20 * GIB, GIB, "--gpu-memory-utilization", "0.9", gpus=[taken])
    with pytest.raises(UserError, match=r"0\.702 of NVIDIA H200 is 99\.0 GiB"):
        gpu(110 * GIB, GIB, gpus=[taken])
    settings, _ = gpu(20 * GIB, GIB, gpus=[replace(H200, free=140 * GIB)])
    assert settings.gpu_memory_utilization is None


def cpu(
    tensors: tuple[Tensor, ...], free: int, *argv: str, mode: str = "dequant", tokens: int = 4096
) -> tuple[Settings, list[str]]:
    settings = parse(argv, dict(os.environ))
    found = Checkpoint("m", config=CONFIG, tensors=tensors)
    target = routing.Target(None, cpu_mode=mode, dtype=settings.dtype or "bfloat16")
    return settings, budget.on_cpu(settings, found, target, tokens, memory.Available(free, "MemAvailable"))


PACKED = (
    Tensor("w.weight", "U8", (GIB // 1024, 1024), GIB),
    Tensor("w.weight_scale", "F8_E4M3", (GIB // 1024, 128), GIB // 8),
)
"""1.1 GiB as stored, 4 GiB in BF16."""


def test_packed_is_offered_only_where_it_would_fit() -> None:
    with pytest.raises(UserError, match=r"weights 4\.0 GiB.*set GB10_CPU_NVFP4_MODE=packed to keep"):
        cpu(PACKED, 5 * GIB)
    with pytest.raises(UserError, match=r"weights 4\.0 GiB.*; use a smaller model, or free memory$"):
        cpu(PACKED, 3 * GIB)
    with pytest.raises(UserError, match=r"weights 1\.1 GiB.*; use a smaller model, or free memory$"):
        cpu(PACKED, 3 * GIB, mode="packed")


def test_the_default_cache_takes_no_more_than_the_weights_leave() -> None:
    one = PER_TOKEN * 4096 * 5 // 4
    settings, _ = cpu(PACKED, 7 * GIB)
    assert settings.kv_cache_memory_bytes == 1 * GIB
    settings, _ = cpu(PACKED, 6 * GIB + one)
    assert settings.kv_cache_memory_bytes == one
    with pytest.raises(UserError, match="KV cache 480 MiB"):
        cpu(PACKED, 6 * GIB + one - MIB)


def test_float32_takes_twice_as_much() -> None:
    with pytest.raises(UserError, match=r"weights 8\.0 GiB, KV cache 960 MiB"):
        cpu(PACKED, 7 * GIB, "--dtype", "float32")


def test_a_share_on_the_cpu_is_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total", lambda: 20 * GIB)
    settings, notes = cpu(PACKED, 16 * GIB, "--gpu-memory-utilization", "0.5")
    assert settings.kv_cache_memory_bytes is None
    assert notes == ["memory  needs 6.5 GiB of 10.0 GiB: weights 4.0 GiB, KV cache 480 MiB, vLLM 2.0 GiB"]
    with pytest.raises(
        UserError, match=r"needs about 6\.5 GiB .* and --gpu-memory-utilization 0\.2 of 20\.0 GiB"
    ):
        cpu(PACKED, 16 * GIB, "--gpu-memory-utilization", "0.2")
    with pytest.raises(UserError, match=r"0\.9 of 20\.0 GiB is 18\.0 GiB, and 16\.0 GiB is free"):
        cpu(PACKED, 16 * GIB, "--gpu-memory-utilization", "0.9")


def test_the_caches_variable_is_read_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    settings, notes = cpu(PACKED, 16 * GIB)
    assert settings.kv_cache_memory_bytes is None
    assert "KV cache 2.0 GiB" in notes[0]
    for text in ("4.5", "4GB", "-1", "0", "٤", " 4 ", "4_0"):
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", text)
        with pytest.raises(UserError, match=f"VLLM_CPU_KVCACHE_SPACE '{text}' is not a whole number above 0"):
            cpu(PACKED, 16 * GIB)


_DENSE = "model.layers.0.linear_attn.in_proj_qkvz.weight"
_MATRICES = (
    Tensor(_DENSE, "BF16", (1024, 256), 2 * 1024 * 256),
    Tensor("model.layers.3.self_attn.q_proj.weight", "F32", (512, 256), 4 * 512 * 256),
    Tensor("lm_head.weight", "BF16", (2048, 256), 2 * 2048 * 256),
    # These stay as they are: routers, odd columns, embeddings, and what is packed already.
    Tensor("model.layers.0.mlp.gate.weight", "BF16", (512, 256), 2 * 512 * 256),
    Tensor("model.layers.0.self_attn.k_proj.weight", "BF16", (64, 96), 2 * 64 * 96),
    Tensor("model.embed_tokens.weight", "BF16", (2048, 256), 2 * 2048 * 256),
    Tensor("model.layers.0.self_attn.o_proj.weight", "U8", (256, 128), 256 * 128),
)
_KEPT = 2 * 512 * 256 + 2 * 64 * 96 + 2 * 2048 * 256 + 256 * 128


def requantised(dense: Format, head: Format, **config: object) -> int:
    """Bytes of ``_MATRICES`` on a GPU."""
    found = Checkpoint("m", config={"quantization_config": {}, **config}, tensors=_MATRICES)
    target = routing.Target((12, 1), dense=dense, head=head)
    forms = routing.requantised(found, target, 2)
    return budget._weights(parse([], {}), found, None, forms)


def test_requantised_weights_are_counted_as_what_they_become() -> None:
    dense, head = (1024 + 512) * 256, 2048 * 256
    keep, fp8, nvfp4 = Format.KEEP, Format.FP8, Format.NVFP4
    assert requantised(keep, keep) == 2 * dense + 2 * head + _KEPT
    assert requantised(fp8, fp8) == dense + head + 4 * (1024 + 512 + 2048) + _KEPT
    assert requantised(nvfp4, keep) == dense * 9 // 16 + 2 * 4 + 2 * head + _KEPT
    assert requantised(keep, nvfp4) == 2 * dense + head * 9 // 16 + 4 + _KEPT
    assert requantised(fp8, fp8, tie_word_embeddings=True) == dense + 4 * 1536 + 2 * head + _KEPT


def test_nothing_is_requantised_on_the_cpu_or_of_a_plain_checkpoint() -> None:
    found = Checkpoint("m", config={"quantization_config": {}}, tensors=_MATRICES)
    target = partial(routing.Target, dense=Format.FP8, head=Format.FP8)
    assert routing.requantised(found, target(None), 2) == {}
    assert routing.requantised(found, target((12, 1)), 4) == {}
    plain = Checkpoint("m", config={}, tensors=_MATRICES)
    assert routing.requantised(plain, target((12, 1)), 2) == {}
    made = routing.requantised(found, target((12, 1)), 2)
    assert {tensor.name: form for tensor, form in made.items()}[_DENSE] == "fp8"


@pytest.mark.parametrize("argv", [["--max-model-len", "99999999999"], ["--max-model-len", "40961"]])
def test_a_context_past_the_models_is_named_where_memory_is_short(argv: list[str]) -> None:
    said = f"--max-model-len {argv[1]} is more than the 40960 tokens of its config.json: give less, or"
    with pytest.raises(UserError, match=said):
        gpu(2 * GIB, 4 * GIB, *argv)
    settings = parse(argv, {})
    target = routing.Target(None)
    free = memory.Available(4 * GIB, "MemAvailable")
    with pytest.raises(UserError, match=said):
        budget.on_cpu(settings, checkpoint(2 * GIB), target, int(argv[1]), free)
    with pytest.raises(UserError, match="not enough memory") as caught:
        gpu(2 * GIB, 4 * GIB, "--max-model-len", "40960")
    assert "config.json" not in str(caught.value)
