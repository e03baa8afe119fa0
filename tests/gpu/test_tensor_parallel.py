"""Two GPUs against one, through our kernels: the trained model with drafts, its experts wide enough for both.

GB10_DEMO_MODEL names the model. NVLink's multicast is left alone: some hosts do not let containers use it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from reference import engines, forms  # noqa: E402
from reference.forms import Form  # noqa: E402

pytestmark = [
    pytest.mark.skipif("GB10_DEMO_MODEL" not in os.environ, reason="GB10_DEMO_MODEL is not set"),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this test needs two GPUs"),
]

NEAR = 0.25
"""Mean difference of a prompt token's log probability: what FP8 may cost (tests/gpu/test_engine.py)."""

PROMPTS = [[(n * 997 + i * (31 + n) + i * i * 7) % 5900 + 100 for i in range(1 + 15 * n)] for n in range(20)]


def _serve(folder: Path, model: Path, ranks: int, **more: Any) -> dict[str, Any]:
    graphs = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
    given = {"model": str(model), "tensor_parallel_size": ranks}
    engine = engines.ON_GPU | engines.mtp(2) | graphs | given | more
    variables = {
        "GB10_ENGINE": "gb10",
        "NCCL_NVLS_ENABLE": "0",
        "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
        # As `gb10 serve` sets it where FlashInfer compiles nothing.
        "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    job = {"engine": engine, "prompts": PROMPTS, "alone": PROMPTS[:3], "max_tokens": 24}
    answer: dict[str, Any] = engines.serve_tokens(job, folder / "answer.json", variables)
    return answer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = Path(os.environ["GB10_DEMO_MODEL"])
    wide = forms.with_wider_experts(Form.read(demo))
    return wide.write(tmp_path_factory.mktemp("model") / "wide", demo)


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _serve(tmp_path_factory.mktemp("one"), model, 1)


@pytest.mark.parametrize("experts", ["divided", "apart"])
def test_two_gpus(experts: str, one: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """Each expert on both, or each on one (expert parallel): the tokens of one GPU but for near-ties."""
    two = _serve(tmp_path, model, 2, enable_expert_parallel=experts == "apart")
    wanted = {(operation, kernel) for operation, kernel, _ in one["dispatched"]}
    for rank in two["dispatched"]:
        ran = {(operation, kernel) for operation, kernel, _ in rank}
        print(sorted(ran ^ wanted))
        assert {("nvfp4_moe", "moe_decode"), ("gdn_decode", "gdn_decode"), ("dense", "fp8_gemv")} <= ran
    differences, moved = engines.differences(two, one), engines.moved_on(two, one)
    mean = sum(differences) / len(differences)
    print(f"mean difference {mean:.4f}; {moved} of {len(PROMPTS) + 3} moved on; drafts {two['drafts']}")
    assert all(map(math.isfinite, differences)) and mean < NEAR
