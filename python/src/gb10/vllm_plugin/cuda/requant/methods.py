"""How vLLM's layers hold requantised weights: a method for linear layers, one for the output head.

Both are vLLM's online quantisation: the weight begins on the meta device, the tensors of the checkpoint are
kept (mapped files) until the layer has all of them, and then the layer is made on the GPU, converted, and its
16 bit tensor is dropped before the next layer's comes. So at any time there is at most one in 16 bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.online.fp8 import OnlineLinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info, initialize_online_processing
from vllm.model_executor.utils import replace_parameter

from gb10.vllm_plugin.cuda.requant.dense import DENSE, HEAD, Dense, why_not
from gb10.vllm_plugin.cuda.requant.names import ATTRIBUTE
from gb10.vllm_plugin.cuda.requant.report import report
from gb10.vllm_plugin.cuda.settings import Format
from gb10.vllm_plugin.made_up import is_dummy

_DONE = "_already_called_process_weights_after_loading"
"""vLLM's own mark; it calls again after the load, and takes the mark away before a reload."""


def dense_of(layer: Any) -> Dense | None:
    """The requantised matrix of a layer, None where it has none."""
    found: Dense | None = layer.__dict__.get(ATTRIBUTE)
    return found


def _convert(layer: Any, form: Format, name: str, operation: str) -> None:
    """Replace a layer's weight by what it becomes as ``form``."""
    weight = layer.weight.detach()
    if _is_unloaded(layer):
        # The proof of the load has let it pass: something else will take its place.
        made = Dense.of(weight.zero_(), form, name, operation, told=False)
    else:
        made = Dense.of(weight, form, name, operation)
    before = dense_of(layer)
    if before is not None:
        # A reload: CUDA graphs have the addresses of the tensors that there are.
        for tensor_name, tensor in made.tensors.items():
            before.tensors[tensor_name].copy_(tensor)
        made = before
    _place(layer, made)


def _is_unloaded(layer: Any) -> bool:
    """Whether the checkpoint had nothing for this layer, whose memory nobody has written then."""
    info = get_layerwise_info(layer)
    return bool(info.can_load() and info.load_numel == 0 and not is_dummy())


def _place(layer: Any, made: Dense) -> None:
    for name, tensor in made.tensors.items():
        replace_parameter(layer, name, tensor)
    # No module and no parameter: neither part of the state that loaders expect, nor traced as one.
    layer.__dict__[ATTRIBUTE] = made
    setattr(layer, _DONE, True)


def merge(layers: Sequence[Any]) -> Dense | None:
    """Make one matrix of the requantised ``layers``, which have one input; None where one is not requantised.

    The layers go on working: each has its rows of the whole as a view, so that nothing is held twice. To be
    called once their weights are loaded.
    """
    parts = [dense_of(layer) for layer in layers]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    whole = Dense.join(known)
    first = 0
    for layer, part in zip(layers, known, strict=True):
        _place(layer, whole.part(first, first + part.shape[0]))
        first += part.shape[0]
    return whole


class _Requantises:
    """What the methods of both kinds of layers share."""

    operation: str
    stock: type
    """vLLM's method for a layer that stays in 16 bit."""

    def __init__(self, form: Format, name: str) -> None:
        super().__init__()
        self.form, self.name = form, name

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        given = (
            *(layer, input_size_per_partition, output_partition_sizes),
            *(input_size, output_size, params_dtype),
        )
        if (reason := why_not(input_size_per_partition, params_dtype)) is not None:
            report.keep(self.name, reason)
            plain: Any = self.stock()
            layer.quant_method = plain
            plain.create_weights(*given, **extra)
        else:
            self._create(*given, **extra)

    def _create(self, layer: Any, *sizes: Any, **extra: Any) -> None:
        """Make the weight on the meta device."""
        raise NotImplementedError

    def process_weights_after_loading(self, layer: Any) -> None:
        """Convert the layer's weight, bfloat16 or float16 ``[N, K]`` of this rank."""
        if not getattr(layer, _DONE, False):
            _convert(layer, self.form, self.name, self.operation)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]``: ``[..., N]`` in its dtype."""
        made: Dense = layer.__dict__[ATTRIBUTE]
        return made.forward(x, bias)


class LinearMethod(_Requantises, OnlineLinearBase):  # type: ignore[misc]  # vLLM is untyped for mypy
    """Requantises a linear layer that the checkpoint has in 16 bit."""

    operation, stock = DENSE, UnquantizedLinearMethod

    def _create(self, layer: Any, *sizes: Any, **extra: Any) -> None:
        OnlineLinearBase.create_weights(self, layer, *sizes, **extra)


def _whole(layer: Any, load: Callable[[torch.Tensor, torch.Tensor], None]) -> Callable[..., None]:
    """A head's loader that copies the padding too: vLLM counts copies, and converts when all is there."""

    def weight_loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        load(param, loaded_weight)
        padding = param.data[layer.num_org_embeddings_per_partition :]
        if padding.numel():
            padding.copy_(torch.zeros_like(padding))

    return weight_loader


class HeadMethod(_Requantises, QuantizeMethodBase):  # type: ignore[misc]
    """Requantises the output head, when it is no embedding as well.

    A drafter that shares the head gets the layer with this method. vLLM compares ``weight`` of both where a
    drafter brings a head of its own, so ``weight`` is there: the codes, which are equal where the heads are.
    """

    operation, stock = HEAD, UnquantizedEmbeddingMethod
    uses_meta_device = True

    def _create(self, layer: Any, *sizes: Any, **extra: Any) -> None:
        loader = _whole(layer, extra["weight_loader"])
        with torch.device("meta"):
            self.stock().create_weights(layer, *sizes, **extra | {"weight_loader": loader})
        initialize_online_processing(layer)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """The embedding is looked up in 16 bit, and a copy for the head would cost memory: keep it."""
        report.keep(self.name, "it is the embedding as well")
        get_layerwise_info(layer).reset()
        layer.quant_method = UnquantizedEmbeddingMethod()
        return layer.quant_method.tie_weights(layer, embed_tokens)
