"""The list of FlashInfer's modules that are compiled ahead of time, against the routing table of 12.x."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gb10 import routing
from gb10.routing.rules import OPERATIONS, Operation

LIST = Path(__file__).parents[3] / "nix" / "flashinfer" / "modules.toml"

WITHOUT_NVCC = {
    "gdn_prefill": "CuTe-DSL: flashinfer.gdn_kernels' chunk_gated_delta_rule_sm120",
}
"""Operations that may end in FlashInfer on 12.x and have nothing to compile ahead."""

OTHER_CHOICES = {"flashinfer_trtllm", "flashinfer_cutedsl", "flashinfer_cudnn", "flashinfer_b12x"}
"""Words of --route without nvcc code for 12.x: TRTLLM is for 10.x, cuDNN a library, the others CuTe-DSL."""


@pytest.fixture(scope="module")
def groups() -> dict[str, dict[str, Any]]:
    return dict(tomllib.loads(LIST.read_text())["groups"])


def may_take_flashinfer(operation: Operation) -> bool:
    """Whether a GPU of 12.x can end there, by itself or by a word of --route."""
    if any("flashinfer" in word and word not in OTHER_CHOICES for word in operation.choices):
        return True
    return any(
        "flashinfer" in routing.route(operation.name, target, batch, variant).backend.lower()
        for capability in ((12, 0), (12, 1))
        for kv_cache in ("auto", "fp8")
        for batch in (1, 4096)
        for variant in operation.variants
        for target in [routing.Target(capability, flashinfer=True, kv_cache=kv_cache)]
    )


def test_every_operation_that_may_take_flashinfer_has_its_modules(groups: dict[str, dict[str, Any]]) -> None:
    wanted = {operation.name for operation in OPERATIONS if may_take_flashinfer(operation)}
    listed = {name for group in groups.values() for name in group["routes"]}
    assert listed == wanted - set(WITHOUT_NVCC)
    assert set(WITHOUT_NVCC) <= wanted
    assert {"nvfp4_linear", "nvfp4_moe", "fp8_linear", "attention", "sampling"} <= listed


def test_the_target_is_the_family_of_12_x() -> None:
    assert tomllib.loads(LIST.read_text())["target"] == "12.0f"
