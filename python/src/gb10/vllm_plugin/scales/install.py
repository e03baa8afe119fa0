"""Put the scales right between the loader and vLLM's own processing of a layer."""

import functools
import importlib
from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.utils import is_weights_pre_processed

from gb10.vllm_plugin.made_up import is_dummy
from gb10.vllm_plugin.scales import activations, weights
from gb10.vllm_plugin.scales.forms import FORMS, Form, is_nvfp4, label

KEY = "GB10_OWN_SCALES"
"""Part of the key of vLLM's torch.compile cache: the layers whose graph multiplies by their parts' scales."""

_logger = init_logger(f"vllm.{__name__}")


class _Tally:
    """What was found while a model was loaded."""

    def __init__(self) -> None:
        self.shared = self.own = self.layers = self.missing = self.layers_missing = 0

    def lines(self) -> list[str]:
        """Lines for the log; none when there was nothing to do."""
        found = []
        if self.layers:
            found.append(
                f"{self.layers} fused layers have parts with global scales of their own: {self.shared} parts "
                f"were brought to one scale for each layer, {self.own} keep theirs; no weight's value changed"
            )
        if self.layers_missing:
            found.append(
                f"{self.layers_missing} layers lack input scales, for {self.missing} experts or parts; these "
                "have the largest one of their layer"
            )
        return found


_tally = _Tally()
_with_own: list[str] = []


def _applies(method: Any) -> bool:
    """Whether the layer's numbers come out of a checkpoint and are not processed yet."""
    return is_nvfp4(method) and not is_dummy() and not is_weights_pre_processed()


def _settle(form: Form, method: Any, layer: Any) -> None:
    missing = activations.settle(form, method, layer)
    carry = weights.carry_experts if form.experts else weights.carry_linear
    carried = carry(form, method, layer)
    _tally.missing += missing
    _tally.layers_missing += missing > 0
    _tally.shared += carried.shared
    _tally.own += carried.own
    _tally.layers += carried != weights.Carried()
    if carried.own:
        _with_own.append(label(layer))


def _wrap(form: Form) -> None:
    cls = getattr(importlib.import_module(form.module), form.name)
    create, process = cls.create_weights, cls.process_weights_after_loading

    @functools.wraps(create)
    def create_weights(self: Any, layer: Any, *arguments: Any, **more: Any) -> None:
        create(self, layer, *arguments, **more)
        if _applies(self):
            activations.mark_missing(form, layer)

    @functools.wraps(process)
    def process_weights_after_loading(self: Any, layer: Any) -> None:
        if _applies(self):
            _settle(form, self, layer)
        process(self, layer)

    cls.create_weights, cls.process_weights_after_loading = create_weights, process_weights_after_loading


def install() -> None:
    """Do it for every NVFP4 layer that this process loads from now on, and log what was found."""
    import vllm.envs

    for form in FORMS:
        _wrap(form)
    load = BaseModelLoader.load_model

    @functools.wraps(load)
    def load_model(self: Any, *arguments: Any, **more: Any) -> Any:
        global _tally
        _tally = _Tally()
        model = load(self, *arguments, **more)
        for line in _tally.lines():
            _logger.info(line)
        return model

    BaseModelLoader.load_model = load_model
    vllm.envs.environment_variables[KEY] = lambda: ",".join(_with_own)
