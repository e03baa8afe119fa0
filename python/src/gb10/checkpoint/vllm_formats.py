"""Ask vLLM's configuration classes in which format it would load each module.

Everything here is what vLLM's own start does, in its order: the Hugging Face config with the side file
(``transformers_utils/config.py``), the choice of the method (``ModelConfig._verify_quantization``), the
configuration (``get_quant_config``), the model's names (``configure_quant_config``), and for each module
``resolve_quant_method``. The layers are stand-ins, and the methods that vLLM would make keep their arguments
instead of choosing kernels: so no GPU is needed, and one machine can be asked about another.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config.model import MODEL_ARCH_CONFIG_CONVERTORS, ModelArchConfigConvertorBase, ModelConfig
from vllm.config.vllm import set_current_vllm_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
    resolve_quant_method,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsScheme
from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig
from vllm.model_executor.layers.quantization.quark.quark import QuarkConfig
from vllm.model_executor.layers.quantization.quark.schemes import QuarkScheme
from vllm.model_executor.layers.quantization.utils import quant_utils
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.weight_utils import get_quant_config
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.utils import WeightsMapper
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.utils.torch_utils import resolve_kv_cache_dtype_string

from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Format, Formats, config_dtype, quiet
from gb10.checkpoint.headers import read_json
from gb10.checkpoint.modules import (
    EXPERTS,
    HEAD,
    LINEAR,
    MLP,
    ROUTER,
    TOWER,
    WEIGHTS,
    Module,
    module_of,
    role_of,
)

_REFUSALS = (ValueError, NotImplementedError, RuntimeError, KeyError)
"""What vLLM's configuration classes raise for a checkpoint that they will not load."""

_DAMAGED = (*_REFUSALS, TypeError, AttributeError, IndexError, RecursionError)
"""What they raise where a section holds values of other types than they expect."""

_WORDS = {
    quant_utils.kNvfp4Static: "nvfp4",
    quant_utils.kNvfp4Dynamic: "nvfp4",
    quant_utils.kNvfp4DynamicToken: "nvfp4",
    quant_utils.kFp8StaticTensorSym: "fp8",
    quant_utils.kFp8DynamicTensorSym: "fp8",
    quant_utils.kFp8StaticTokenSym: "fp8_channel",
    quant_utils.kFp8StaticChannelSym: "fp8_channel",
    quant_utils.kFp8DynamicTokenSym: "fp8",
    quant_utils.kFp8Static128BlockSym: "fp8_block",
    quant_utils.kFp8Static128BlockE8M0Sym: "fp8_block",
    quant_utils.kFp8Dynamic128Sym: "fp8",
    quant_utils.kFp8Dynamic64Sym: "fp8",
    quant_utils.kMxfp8Static: "mxfp8",
    quant_utils.kMxfp8Dynamic: "mxfp8",
    quant_utils.kMxfp4Static: "mxfp4",
    quant_utils.kMxfp4Dynamic: "mxfp4",
    quant_utils.kInt8StaticChannelSym: "int8",
    quant_utils.kInt8StaticTensorSym: "int8",
    quant_utils.kInt8DynamicTokenSym: "int8",
    quant_utils.kInt4Static: "int4",
    quant_utils.kInt4Static32: "int4",
}


def _word(key: object) -> str:
    """A word for a QuantKey of vLLM; "" for None."""
    if key is None:
        return ""
    return _WORDS.get(key, str(key)) if isinstance(key, quant_utils.QuantKey) else str(key)


@contextmanager
def _arguments_kept(*bases: type) -> Iterator[None]:
    """Instances of these classes keep their constructor's arguments as ``asked``, and do nothing else.

    vLLM's constructors choose kernels, which needs the device. Subclasses that are imported meanwhile count.
    """
    originals: dict[type, Any] = {}

    def keep(kind: type) -> None:
        original = vars(kind).get("__init__")
        if original is None or kind in originals:
            return
        signature = inspect.signature(original)

        @functools.wraps(original)
        def kept(self: object, *given: Any, **named: Any) -> None:
            bound = signature.bind(self, *given, **named)
            bound.apply_defaults()
            object.__setattr__(self, "asked", dict(bound.arguments))

        originals[kind] = original
        kind.__init__ = kept  # type: ignore[misc]

    def keep_all(kind: type) -> None:
        keep(kind)
        below: list[type] = kind.__subclasses__()
        for one in below:
            keep_all(one)

    for base in bases:
        keep_all(base)
        base.__init_subclass__ = classmethod(lambda kind, **_: keep(kind))  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for base in bases:
            del base.__init_subclass__
        for kind, original in originals.items():
            kind.__init__ = original  # type: ignore[misc]


def _hugging_face_config(checkpoint: Checkpoint) -> Any:
    """The config as vLLM reads it; a plain stand-in where transformers does not know the model."""
    if checkpoint.folder is not None:
        try:
            return get_config(str(checkpoint.folder), trust_remote_code=False)
        except Exception:  # whatever transformers raises for a model that is not its own
            pass
    config = dict(checkpoint.config)
    side = None if checkpoint.folder is None else checkpoint.folder / "hf_quant_config.json"
    if config.get("quantization_config") is None and side is not None and side.exists():
        config["quantization_config"] = read_json("quantisation config", side)
    config.setdefault("model_type", "")
    text = SimpleNamespace(**checkpoint.text)
    if checkpoint.text is not checkpoint.config:
        config["text_config"] = text
    whole = SimpleNamespace(**config)
    whole.get_text_config = lambda *_: getattr(whole, "text_config", whole)
    return whole


def _method(hf_config: Any, asked: str | None) -> tuple[str | None, dict[str, Any] | None]:
    """vLLM's name for the quantisation, and the section that says so. Raises ValueError as vLLM does."""
    convertor = MODEL_ARCH_CONFIG_CONVERTORS.get(hf_config.model_type, ModelArchConfigConvertorBase)
    text = hf_config if isinstance(hf_config, SimpleNamespace) else get_hf_text_config(hf_config)
    section = convertor(hf_config, text).get_quantization_config()
    model = SimpleNamespace(
        quantization=asked,
        model_arch_config=SimpleNamespace(quantization_config=section),
        hf_config=hf_config,
        allow_deprecated_quantization=True,
    )
    ModelConfig._verify_quantization(model)
    return model.quantization, section


def _count(config: Any, name: str) -> int:
    value = getattr(config.get_text_config(), name, None)
    return value if isinstance(value, int) else 0


def _configuration(checkpoint: Checkpoint, hf_config: Any, method: str) -> QuantizationConfig:
    heads = _count(hf_config, "num_attention_heads")
    model = SimpleNamespace(
        model=checkpoint.source,
        revision=None,
        quantization=method,
        quantization_config=None,
        hf_config=hf_config,
        hf_overrides={},
        model_arch_config=SimpleNamespace(
            total_num_attention_heads=heads,
            total_num_kv_heads=_count(hf_config, "num_key_value_heads") or heads,
        ),
    )
    return get_quant_config(model, SimpleNamespace(download_dir=None))


def _model_class(checkpoint: Checkpoint) -> type | None:
    """vLLM's class of the model, None where it has none that can be imported."""
    for architecture in checkpoint.config.get("architectures") or ():
        registered = ModelRegistry.models.get(architecture)
        if registered is not None:
            try:
                return registered.load_model_cls()  # type: ignore[no-any-return]
            except Exception:  # a model that cannot be imported here is vLLM's to complain about
                return None
    return None


class _Names:
    """From names of the checkpoint to those of vLLM's model, as ``configure_quant_config`` sets them up."""

    def __init__(self, model: type | None, config: QuantizationConfig) -> None:
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        self._mapper: WeightsMapper | None = None if mapper is None else mapper.get_rename_mapper()
        packed = getattr(model, "packed_modules_mapping", None) or {}
        if self._mapper is not None:
            config.apply_vllm_mapper(self._mapper)
        config.packed_modules_mapping = dict(packed)
        self._fused = {part: fused for fused, parts in packed.items() for part in parts}

    def renamed(self, module: Module) -> str:
        """The module's name in vLLM, its own projections not yet fused."""
        if self._mapper is None:
            return module.name
        leaf = ".0.weight" if module.role == EXPERTS else ".weight"
        mapped: str | None = self._mapper.map_name(module.name + leaf)
        return mapped.removesuffix(leaf) if mapped else module.name

    def fused(self, name: str) -> str:
        """The layer of vLLM that holds this one, for example qkv_proj for q_proj."""
        stem, dot, last = name.rpartition(".")
        fused: str = self._fused.get(last, last)
        return stem + dot + fused


def _projections(checkpoint: Checkpoint) -> tuple[str, str, str]:
    """What the checkpoint calls the gate, up and down projections of an expert."""
    leaves = {
        part
        for tensor in checkpoint.tensors
        if ".experts." in tensor.name
        for part in tensor.name.split(".experts.", 1)[1].split(".")
    }
    return ("w1", "w3", "w2") if {"w1", "w2"} <= leaves else ("gate_proj", "up_proj", "down_proj")


def _layer(module: Module, projections: tuple[str, str, str]) -> torch.nn.Module:
    """A layer of the class that vLLM would ask for this module, without weights."""
    kind = {EXPERTS: RoutedExperts, HEAD: ParallelLMHead}.get(module.role, ColumnParallelLinear)
    layer: Any = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    if module.role == EXPERTS:
        layer.moe_config = SimpleNamespace()
        names = zip(("gate", "up", "down"), projections, strict=True)
        for name, given in names:
            object.__setattr__(layer, f"ckpt_{name}_proj_name", given)
    return layer  # type: ignore[no-any-return]


def _compressed(scheme: Mapping[str, Any] | None) -> Format:
    """The format of compressed-tensors' arguments for a layer."""

    def word(args: Any, *, weight: bool) -> str:
        if args is None:
            return ""
        for name in ("nvfp4_format", "mxfp4", "mxfp8"):
            if getattr(CompressedTensorsConfig, f"_is_{name}")(args):
                return name.removesuffix("_format")
        kind = getattr(args.type, "value", args.type)
        if kind != "float" or args.num_bits != 8:
            return f"{'' if kind == 'int' else kind}int{args.num_bits}".replace("floatint", "float")
        strategy = getattr(args.strategy, "value", args.strategy)
        return f"fp8_{strategy}" if weight and strategy in ("channel", "block") else "fp8"

    if not scheme:
        return Format()
    return Format(
        word(scheme.get("weights"), weight=True), word(scheme.get("input_activations"), weight=False)
    )


def _fp8(asked: Mapping[str, Any]) -> Format:
    return Format("fp8_block" if asked["quant_config"].weight_block_size else "fp8", "fp8")


def _modelopt_experts(asked: Mapping[str, Any]) -> Format:
    return Format("nvfp4", "" if asked["quant_config"].quant_method == "W4A16_NVFP4" else "nvfp4")


def _modelopt_linear(asked: Mapping[str, Any]) -> Format:
    return Format(_word(asked["spec"].weight), _word(asked["spec"].activation))


_READ: dict[str, Callable[[Mapping[str, Any]], Format]] = {
    "ModelOptLinearMethod": _modelopt_linear,
    "ModelOptNvFp4FusedMoE": _modelopt_experts,
    "ModelOptFp8MoEMethod": lambda _: Format("fp8", "fp8"),
    "ModelOptMxFp8FusedMoE": lambda _: Format("mxfp8", "mxfp8"),
    "Fp8LinearMethod": _fp8,
    "Fp8MoEMethod": _fp8,
    "Mxfp4MoEMethod": lambda _: Format("mxfp4"),
    "GptOssMxfp4MoEMethod": lambda _: Format("mxfp4"),
    "Fp8PerTensorOnlineLinearMethod": lambda _: Format("fp8", "fp8"),
    "Fp8PerTensorOnlineMoEMethod": lambda _: Format("fp8", "fp8"),
    "Fp8PtpcOnlineLinearMethod": lambda _: Format("fp8_channel", "fp8"),
    "Fp8PtpcOnlineMoEMethod": lambda _: Format("fp8_channel", "fp8"),
    "Fp8PerBlockOnlineLinearMethod": lambda _: Format("fp8_block", "fp8"),
    "Fp8PerBlockOnlineMoEMethod": lambda _: Format("fp8_block", "fp8"),
    "Mxfp8OnlineLinearMethod": lambda _: Format("mxfp8", "mxfp8"),
    "Mxfp8OnlineMoEMethod": lambda _: Format("mxfp8", "mxfp8"),
    "Mxfp4OnlineLinearMethod": lambda _: Format("mxfp4"),
    "Mxfp4OnlineMoEMethod": lambda _: Format("mxfp4"),
    "Int8OnlineMoEMethod": lambda _: Format("int8"),
    "Nvfp4OnlineMoEMethod": lambda _: Format("nvfp4", "nvfp4"),
}
"""What a method of vLLM says of its format, by its class or a class that it is made from."""


def _format(config: QuantizationConfig, layer: torch.nn.Module, name: str, seen: list[Any]) -> Format:
    """What vLLM makes of one layer. Raises what its configuration classes raise.

    ``seen`` gets the groups of compressed-tensors that were found on the way.
    """
    if isinstance(config, QuarkConfig):
        weight, activation, _ = config.get_quant_method_target(name, type(layer))
        return Format(_word(weight), _word(activation))
    before = len(seen)
    if isinstance(config, CompressedTensorsConfig):
        look_up = CompressedTensorsConfig.get_scheme_dict

        def noted(*given: Any, **named: Any) -> Any:
            seen.append(look_up(config, *given, **named))
            return seen[-1]

        config.get_scheme_dict = noted
    method = resolve_quant_method(config, layer, name)
    if method is None or type(method).__name__.startswith("Unquantized"):
        return Format()
    kinds = [kind.__name__ for kind in type(method).__mro__]
    read = next((_READ[kind] for kind in kinds if kind in _READ), None)
    if read is not None:
        return read(method.asked)
    if len(seen) > before:
        return _compressed(seen[-1])
    bits = getattr(config, "weight_bits", None)
    return Format(f"int{bits}" if isinstance(bits, int) else kinds[0])


def _stored_plain(checkpoint: Checkpoint) -> set[str]:
    """Modules whose matrices are all floats of 16 or 32 bits in the headers."""
    plain: dict[str, bool] = {}
    for tensor in checkpoint.tensors:
        module, _, leaf = tensor.name.rpartition(".")
        if leaf in WEIGHTS:
            name = module_of(module).name
            plain[name] = plain.get(name, True) and tensor.dtype in ("BF16", "F16", "F32")
    return {name for name, found in plain.items() if found}


def _kv_cache(hf_config: Any, config: QuantizationConfig | None) -> str:
    """What ``--kv-cache-dtype auto`` becomes: ``EngineArgs``, then ``Attention`` for compressed-tensors."""
    found: str = resolve_kv_cache_dtype_string("auto", SimpleNamespace(hf_config=hf_config))
    if found == "auto" and getattr(config, "kv_cache_scheme", None) is not None:
        return "fp8"
    return found


def _unnamed(
    config: QuantizationConfig, checkpoint: Checkpoint, seen: list[Any]
) -> Iterator[tuple[Module, Format]]:
    """Groups of compressed-tensors that none of the expected names fits: the names are vLLM's to know.

    The target stands for its modules, with the role that its words tell.
    """
    groups = config.target_scheme_map if isinstance(config, CompressedTensorsConfig) else {}
    for target, scheme in groups.items():
        if not any(scheme is found for found in seen) and ("." in target or target.startswith("re:")):
            role = role_of(re.sub(r"[^\w.]+", ".", target.removeprefix("re:")).strip("."))
            routed = checkpoint.experts and role == MLP and "shared" not in target
            yield Module(target, EXPERTS if routed else role), _compressed(scheme)


def _ask_all(
    checkpoint: Checkpoint, modules: Iterable[Module], hf_config: Any, config: QuantizationConfig
) -> tuple[list[tuple[Module, Format]], str]:
    """The format of each module, and why vLLM will not build the model ("" if it will)."""
    names = _Names(_model_class(checkpoint), config)
    projections = _projections(checkpoint)
    # What is quantised while it is loaded is plain in the file.
    plain = set() if isinstance(config, OnlineQuantizationConfig) else _stored_plain(checkpoint)
    tied = checkpoint.config.get("tie_word_embeddings", checkpoint.text.get("tie_word_embeddings")) is True
    found, trouble = [], ""
    seen: list[Any] = []
    for module in modules:
        name = names.renamed(module)
        whole = names.fused(name) if module.role in LINEAR else name
        layer = _layer(module, projections)
        try:
            form = _format(config, layer, whole, seen)
        except AttributeError:
            # A method that wants to see the layer's sizes before it decides which of its kernels fits.
            bits = getattr(config, "weight_bits", None)
            form = Format(f"int{bits}" if isinstance(bits, int) else config.get_name())
        except _REFUSALS as error:
            form = Format()
            if module.role not in (TOWER, ROUTER) and not module.draft:
                trouble = trouble or f"{module.name}: {error}"
        # Some of vLLM's models leave a module plain whatever the config says: then the file holds it plain.
        if module.name in plain or (module.role == HEAD and tied and not checkpoint.tensors):
            form = Format()
        found.append((module, form))
    if not checkpoint.tensors:
        found += _unnamed(config, checkpoint, seen)
    return found, trouble


def _damage(error: Exception) -> str:
    """One line on what vLLM's classes raised."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def ask(checkpoint: Checkpoint, modules: Iterable[Module]) -> Formats:
    """Read the formats of a checkpoint with vLLM."""
    listed = tuple(modules)
    plain = tuple((module, Format()) for module in listed)
    dtype = config_dtype(checkpoint.config)
    with quiet():
        hf_config = _hugging_face_config(checkpoint)
        try:
            method, _ = _method(hf_config, checkpoint.quantization)
            config = None if method is None else _configuration(checkpoint, hf_config, method)
        except _REFUSALS as error:
            return Formats("", "auto", dtype, plain, str(error) or type(error).__name__)
        except OSError:
            # A file that must be fetched first, and cannot be now: nothing is known.
            return Formats(dtype=dtype, modules=plain)
        except _DAMAGED as error:
            return Formats("", "auto", dtype, plain, _damage(error))
        try:
            kv_cache = _kv_cache(hf_config, config)
            if config is None:
                return Formats("", kv_cache, dtype, plain)
            engine = SimpleNamespace(
                model_config=SimpleNamespace(hf_config=hf_config, dtype=torch.bfloat16),
                compilation_config=SimpleNamespace(custom_ops=["none"]),
            )
            with (
                set_current_vllm_config(engine),
                _arguments_kept(QuantizeMethodBase, CompressedTensorsScheme, QuarkScheme),
            ):
                found, trouble = _ask_all(checkpoint, listed, hf_config, config)
        except _DAMAGED as error:
            return Formats(method or "", "auto", dtype, plain, _damage(error))
    return Formats(method or "", kv_cache, dtype, tuple(found), trouble)
