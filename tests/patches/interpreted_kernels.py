"""Run vLLM's GDN and KDA decode kernels in Triton's interpreter, on the CPU.

The functions here are for a process of their own (see ``test_gdn_state_index.py``): Triton decides when it is
imported whether it interprets, and vLLM puts placeholders in Triton's place where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]

FLA = "vllm.third_party.flash_linear_attention.ops"
GLM = "vllm.models.glm5next.nvidia.ops.third_party.kda"
KIMI = "vllm.models.kimi_k3.nvidia.ops.third_party.kda"
CONV = "vllm.model_executor.layers.mamba.ops.causal_conv1d"

RECURRENT = {
    "gated_delta_rule": (f"{FLA}.fused_recurrent", "fused_recurrent_gated_delta_rule_fwd"),
    "sigmoid_gating": (f"{FLA}.fused_sigmoid_gating", "fused_sigmoid_gating_delta_rule_update"),
    "kda": (f"{FLA}.kda", "fused_recurrent_kda_fwd"),
    "glm5next": (f"{GLM}.fused_recurrent", "fused_recurrent_gated_delta_rule_fwd"),
    "glm5next_kda": (f"{GLM}.kernels", "fused_recurrent_kda_fwd"),
    "kimi_k3_kda": (f"{KIMI}.fused_recurrent", "fused_recurrent_kda_fwd"),
}

REQUESTS, SLOTS, POOL, DIM = 2, 2, 8, 8
WIDTH, DRAFTS, CHANNELS, LINES = 4, 1, 8, 4
STATE_LEN = WIDTH - 1 + DRAFTS


def missing() -> str | None:
    """Return why the kernels cannot run here, or None when they can."""
    for name in ("triton", "vllm"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed; the kernels run in Triton's interpreter"
    return None


def start_process() -> None:
    """Prepare a fresh process: an interpreting Triton in the place of vLLM's placeholders."""
    if "triton" in sys.modules:
        raise RuntimeError("Triton is already imported; the interpreter needs a fresh process")
    os.environ["TRITON_INTERPRET"] = "1"
    utils = importlib.import_module("vllm.triton_utils")
    triton, language = importlib.import_module("triton"), importlib.import_module("triton.language")
    vars(utils).update(triton=triton, tl=language, HAS_TRITON=True)


def _bare_package(name: str) -> None:
    """Enter ``name`` and its parents into ``sys.modules`` without running an ``__init__``.

    Those of the models import all of the model, with libraries that its kernels do not need.
    """
    parent, _, last = name.rpartition(".")
    if name in sys.modules:
        return
    _bare_package(parent)
    module = ModuleType(name)
    module.__path__ = [str(Path(sys.modules[parent].__path__[0]) / last)]
    sys.modules[name] = module


@functools.cache
def load(name: str) -> ModuleType:
    """Import the kernel module ``name`` as on a machine with a GPU."""
    if name.startswith("vllm.models."):
        _bare_package(name.rpartition(".")[0])
    platform = type(importlib.import_module("vllm.platforms").current_platform)
    # On the CPU platform causal_conv1d.py ends by putting C++ functions in the place of its kernels.
    with mock.patch.object(platform, "is_cpu", lambda _platform: False):
        module = importlib.import_module(name)
    operators = importlib.import_module("interpreted_ops")
    vars(module).update({key: vars(operators)[key] for key in ("exp", "log") if key in vars(module)})
    return module


def _inputs(kernel: str) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.5

    tokens = {name: draw(1, REQUESTS, 1, DIM) for name in ("q", "k", "v")}
    if kernel == "sigmoid_gating":
        gates = {"A_log": draw(1), "a": draw(1, REQUESTS, 1), "b": draw(1, REQUESTS, 1), "dt_bias": draw(1)}
        return tokens | gates
    gate_shape = (1, REQUESTS, 1, DIM) if kernel.endswith("kda") else (1, REQUESTS, 1)
    return tokens | {"g": -draw(*gate_shape).abs(), "beta": draw(1, REQUESTS, 1).sigmoid()}


def run_recurrent(kernel: str, accepted: list[int]) -> Arrays:
    """Decode one token for each of two requests with ``accepted`` tokens in the step before.

    Returns the output [REQUESTS, DIM] and the state pool afterwards [POOL, 1, DIM, DIM], both float32.
    """
    module, name = RECURRENT[kernel]
    function: Callable[..., Any] = getattr(load(module), name)
    pool = torch.randn(POOL, 1, DIM, DIM, generator=torch.Generator().manual_seed(5))
    # The table is wider than a row of slots, as vLLM's block table is, so its stride is no bound.
    table = torch.tensor([[1, 2, 5, 5], [3, 4, 6, 6]], dtype=torch.int32)
    out, _ = function(
        **_inputs(kernel),
        scale=DIM**-0.5,
        initial_state=pool,
        inplace_final_state=True,
        cu_seqlens=torch.arange(REQUESTS + 1, dtype=torch.int32),
        ssm_state_indices=table[:, :SLOTS],
        num_accepted_tokens=torch.tensor(accepted, dtype=torch.int32),
    )
    return out.reshape(REQUESTS, DIM).numpy(), pool.numpy()


def run_conv(accepted: list[int], drafted: int) -> Arrays:
    """Run one conv step over ``drafted`` tokens for each of two requests.

    Returns the output [REQUESTS * drafted, CHANNELS] and the conv cache [LINES, STATE_LEN, CHANNELS],
    float32. The cache is passed transposed, as vLLM does: before a line lies another request's line.
    """
    random = torch.Generator().manual_seed(7)
    cache = torch.randn(LINES, STATE_LEN, CHANNELS, generator=random)
    x = torch.randn(REQUESTS * drafted, CHANNELS, generator=random)
    weight = torch.randn(CHANNELS, WIDTH, generator=random)
    out = load(CONV).causal_conv1d_update(
        x,
        cache.transpose(1, 2),
        weight,
        None,
        "silu",
        conv_state_indices=torch.tensor([1, 2], dtype=torch.int32),
        num_accepted_tokens=torch.tensor(accepted, dtype=torch.int32),
        query_start_loc=torch.arange(0, REQUESTS * drafted + 1, drafted, dtype=torch.int32),
        max_query_len=DRAFTS + 1,
    )
    return out.numpy(), cache.numpy()
