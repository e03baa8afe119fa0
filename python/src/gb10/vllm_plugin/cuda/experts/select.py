"""Have vLLM hold NVFP4 experts in the checkpoint's layout, and run them with ours.

vLLM's backends are a closed enum, and every checkpoint format's method asks one function which to take.
EMULATION is the member that keeps the checkpoint's layout, and VLLM_CUTLASS the one whose layout and swizzled
scales `moe_decode` reads too. The shared expert runs in the same launches where `layer` can fold it in.
"""

import functools
import importlib
import logging
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
import vllm.model_executor.model_loader.base_loader as base_loader
from vllm.model_executor.layers.fused_moe.oracle import nvfp4 as oracle
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from gb10.kernels import load
from gb10.vllm_plugin.cuda.experts import kernels
from gb10.vllm_plugin.cuda.experts.layer import Experts, experts_of
from gb10.vllm_plugin.cuda.settings import CudaMode, Part, warn_once

logger = logging.getLogger("vllm.gb10")

_QUANTIZATION = "vllm.model_executor.layers.quantization"
_USERS = (
    "vllm.model_executor.layers.fused_moe.oracle.nvfp4",
    f"{_QUANTIZATION}.modelopt",
    f"{_QUANTIZATION}.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w4a4_nvfp4",
    f"{_QUANTIZATION}.quark.quark_moe",
)
"""The modules that hold select_nvfp4_moe_backend by name, for weights of a checkpoint."""

_OURS = (
    (oracle.NvFp4MoeBackend.VLLM_CUTLASS, kernels.CutlassDecodeExperts),
    (oracle.NvFp4MoeBackend.EMULATION, kernels.NativeExperts),
)


def choose(config: Any, weight_key: Any, activation_key: Any) -> tuple[oracle.NvFp4MoeBackend, type] | None:
    """Our class for a layer and the backend it stands for; None where another is asked for or has to run."""
    if config.moe_backend != "auto" or config.moe_parallel_config.use_batched_activation_format:
        return None
    if (why := kernels.refusal(config)) is not None:
        warn_once(f"gb10: NVFP4 experts with {why} are vLLM's")
        return None
    reasons = []
    for backend, experts in _OURS:
        supported, reason = experts.is_supported_config(
            experts, config, weight_key, activation_key, experts.activation_format()
        )
        if supported:
            return backend, experts
        reasons.append(str(reason))
    warn_once(f"gb10: NVFP4 experts are vLLM's: {'; '.join(reasons)}")
    return None


def _select() -> None:
    stock = oracle.select_nvfp4_moe_backend

    @functools.wraps(stock)
    def select_nvfp4_moe_backend(config: Any, weight_key: Any, activation_key: Any) -> Any:
        return choose(config, weight_key, activation_key) or stock(config, weight_key, activation_key)

    for name in _USERS:
        setattr(importlib.import_module(name), stock.__name__, select_nvfp4_moe_backend)


def _apart(runner: Any) -> str:
    """Why a runner's own forward has to stay, or nothing."""
    parallel = runner.moe_config.moe_parallel_config
    if parallel.dp_size > 1 or parallel.pcp_size > 1 or parallel.is_sequence_parallel:
        return "runs in parallel over tokens"
    if runner.routed_input_transform is not None or runner.enable_dbo or runner.gate is None:
        return "belongs to another kind of block"
    return ""


def fold(runner: Any) -> str | None:
    """Let a runner's forward take the shared expert along, where it can. What came of it; None: not ours."""
    experts = experts_of(runner)
    if experts is None:
        return None
    if experts.module is None:
        return "without a shared expert"
    if why := experts.why_apart or _apart(runner):
        return f"apart from the shared expert, which {why}"
    runner._shared_experts = None
    runner._forward_entry = runner._select_forward()
    object.__setattr__(runner, "gb10_folded", experts)
    return "with the shared expert"


def forward(runner: Any, experts: Experts, x: torch.Tensor, input_ids: torch.Tensor | None) -> torch.Tensor:
    """Router, then routed and shared experts in one: ``[M, H]``."""
    logits, _ = runner.gate(x)
    weights, ids = runner.router.select_experts(
        hidden_states=x, router_logits=logits, topk_indices_dtype=torch.int32, input_ids=input_ids
    )
    gate = experts.module.expert_gate
    multiplier = None if gate is None else F.linear(x, gate.weight).float().sigmoid().reshape(-1)
    out = torch.empty_like(x)
    experts.forward(x, ids, weights, multiplier, out)
    return out


def _run_folded() -> None:
    stock = MoERunner._forward_impl

    def _forward_impl(
        self: Any,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        shared_experts_input: torch.Tensor | None,
        input_ids: torch.Tensor | None = None,
    ) -> Any:
        experts: Experts | None = getattr(self, "gb10_folded", None)
        if experts is None:
            return stock(self, hidden_states, router_logits, shared_experts_input, input_ids)
        return forward(self, experts, hidden_states, input_ids)

    MoERunner._forward_impl = _forward_impl


def _after_load() -> None:
    stock = base_loader.process_weights_after_loading

    @functools.wraps(stock)
    def process_weights_after_loading(model: torch.nn.Module, *rest: Any, **named: Any) -> None:
        stock(model, *rest, **named)
        found = Counter(fold(module) for module in model.modules() if isinstance(module, MoERunner))
        for how, count in found.items():
            if how is not None:
                logger.info("gb10: NVFP4 experts: our kernels in %d layers, %s", count, how)

    base_loader.process_weights_after_loading = process_weights_after_loading


def install() -> None:
    """Do it for every model that this process loads from now on."""
    if not CudaMode.of_process().has(Part.EXPERTS):
        return
    load()
    _select()
    _run_folded()
    _after_load()
