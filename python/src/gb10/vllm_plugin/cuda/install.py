"""Our kernels in vLLM on a GPU: after a model was loaded, its layers are taken over one by one.

What a layer has that our kernels do not take keeps vLLM's own forward, and one line of the log says why.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import vllm.envs
import vllm.model_executor.model_loader.base_loader as base_loader

from gb10.kernels import load
from gb10.vllm_plugin.cuda import selftest
from gb10.vllm_plugin.cuda.layers import attention, block, gdn, norm
from gb10.vllm_plugin.cuda.settings import CudaMode, Part, SelfTest
from gb10.vllm_plugin.made_up import is_dummy

logger = logging.getLogger("vllm.gb10")

_NOT_WORTH_SAYING = "no experts"


def take_over(model: torch.nn.Module, mode: CudaMode) -> None:
    """Prepare each layer of a loaded model for our forward, where that part is on and the layer fits."""
    if vllm.envs.VLLM_BATCH_INVARIANT:
        logger.info(
            "gb10: vLLM's own layers: VLLM_BATCH_INVARIANT asks for bits that no other request changes"
        )
        return
    kinds: list[tuple[str, Part, tuple[type, ...], Callable[[Any, str], str | None]]] = [
        ("router and experts", Part.ROUTER, block.DECODER_LAYERS, block.prepare),
        ("input norms", Part.NORM, block.DECODER_LAYERS, norm.prepare),
        ("Gated DeltaNet", Part.GDN, gdn.LAYERS, gdn.prepare),
        ("attention", Part.ATTENTION, attention.LAYERS, attention.prepare),
    ]
    for title, part, classes, prepare in kinds:
        if not mode.has(part):
            continue
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, classes)]
        found = Counter(prepare(module, name) for name, module in layers)
        if taken := found.pop(None, 0):
            logger.info("gb10: %s: our kernels in %d layers of %s", title, taken, type(model).__name__)
        for why, count in found.items():
            if why != _NOT_WORTH_SAYING:
                logger.info("gb10: %s: vLLM's own layers in %d layers: %s", title, count, why)


def install() -> None:
    """Load our operators, register those of the layers, and take over what is loaded from now on."""
    mode, wanted = CudaMode.of_process(), SelfTest.from_env()
    load()
    norm.install()
    if mode.has(Part.ROUTER):
        block.install()
    if mode.has(Part.GDN):
        gdn.install()
    if mode.has(Part.ATTENTION):
        attention.install()
    stock = base_loader.process_weights_after_loading

    @functools.wraps(stock)
    def process_weights_after_loading(
        model: torch.nn.Module, model_config: Any, target_device: torch.device
    ) -> None:
        stock(model, model_config, target_device)
        take_over(model, mode)
        if target_device.type == "cuda":
            # Our kernels read weights while the kernel before them runs: all must be in memory. Once for all
            # rooms that change weights: this one is the last of `patches`, so its function is the outermost.
            torch.cuda.synchronize(target_device)
        if wanted is not SelfTest.OFF:
            # Weights out of nothing may be no numbers; the start is none that serves.
            selftest.run(model, model_config.dtype, SelfTest.REPORT if is_dummy() else wanted)

    base_loader.process_weights_after_loading = process_weights_after_loading
