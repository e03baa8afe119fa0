"""From a checkpoint's config and headers to a `Model`."""

from collections.abc import Mapping

from gb10 import routing
from gb10.audit import model as words
from gb10.audit.model import Model, Part
from gb10.audit.state import layer_state, longest
from gb10.checkpoint import modules, size
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Formats
from gb10.checkpoint.headers import Tensor
from gb10.checkpoint.modules import Module, module_of
from gb10.errors import UserError
from gb10.vllm_plugin.cuda.settings import Format
from gb10.vllm_plugin.cuda.settings import Part as EnginePart

GB10 = (12, 1)
"""Compute capability of a DGX Spark."""

_ELEMENT = 2
"""Bytes of a value of bfloat16 and float16."""

_COMPONENTS = {
    modules.ATTENTION: words.ATTENTION,
    modules.GDN: words.GDN,
    modules.MLP: words.MLP,
    modules.EXPERTS: words.EXPERTS,
    modules.SHARED: words.SHARED,
    modules.HEAD: words.HEAD,
    modules.ROUTER: words.ROUTER,
    modules.EMBEDDING: words.EMBEDDING,
    modules.TOWER: words.TOWER,
}
_RECURRENT = frozenset({"A_log", "D", "dt_bias", "conv1d", "norm"})
"""What a Mamba mixer has beside its projections."""

_TOP = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
_COUNTS = (
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"),
    *_TOP,
)
"""Of config.json: what the sums are made with."""

_SIXTEEN = {"BF16": "bf16", "F16": "f16", "F32": "f32"}


_MOST = {"num_hidden_layers": 1 << 12}
"""More than that is a fault in a file; of what is not listed 2 to the 40."""


def check_counts(checkpoint: Checkpoint) -> None:
    """Raise UserError for a count of config.json that is none; some models list one for each layer.

    Before vLLM is asked: its classes make something of each layer.
    """
    for key in _COUNTS:
        value = checkpoint.text.get(key)
        counts = value if isinstance(value, list) else [value]
        absent = value is None and (key not in checkpoint.text or key != "num_hidden_layers")
        if not absent and not all(
            type(one) is int and isinstance(value, int) <= one <= _MOST.get(key, 1 << 40) for one in counts
        ):
            raise UserError(
                f"config.json of {checkpoint.name} has {key} {str(value)[:40]}, which is no number of them; "
                "take the checkpoint's own config.json"
            )
        if key in _TOP and type(value) is int and checkpoint.experts and value > checkpoint.experts:
            raise UserError(
                f"config.json of {checkpoint.name} has {key} {value}, and {checkpoint.experts} experts; take "
                "the checkpoint's own config.json"
            )
    if checkpoint.experts and not any(checkpoint.text.get(key) for key in _TOP):
        raise UserError(
            f"config.json of {checkpoint.name} has {checkpoint.experts} experts and does not say how many of "
            f"them a token takes ({_TOP[0]}); take the checkpoint's own config.json"
        )


def target(formats: Formats, dense: str = words.KEEP, head: str = words.KEEP) -> routing.Target:
    """A DGX Spark that serves such a checkpoint with our engine and these ``--dense`` and ``--head``."""
    return routing.Target(
        GB10,
        kv_cache=formats.kv_cache,
        kv_cache_of_checkpoint=formats.kv_cache != "auto",
        dtype=formats.model_dtype,
        parts=tuple(EnginePart),
        dense=Format(dense),
        head=Format(head),
    )


def _component(name: str, leaf: str, module: Module) -> str:
    """The component of a tensor ``leaf`` of the module ``name``."""
    if module.draft:
        return words.DRAFT
    parts = name.split(".")
    if "norm" in parts[-1] and (len(parts) < 4 or parts[-2].isdigit()) and module.role != modules.TOWER:
        return words.NORMS
    if module.role == modules.GDN:
        return words.GDN_IN if parts[-1].startswith("in_proj") else words.GDN
    if module.role == modules.MLP and "mixer" in parts and _RECURRENT & {leaf, parts[-1]}:
        return words.GDN
    return _COMPONENTS[module.role]


def _layer(name: str) -> int | None:
    parts = name.split(".")
    if "layers" not in parts[:-1]:
        return None
    number = parts[parts.index("layers") + 1]
    return int(number) if number.isascii() and number.isdigit() else None


def _word(tensors: list[Tensor], said: str) -> str:
    """The format of a module: what vLLM said of it, else the type of its largest tensor."""
    kind = max(tensors, key=lambda tensor: tensor.size).dtype
    return said or _SIXTEEN.get(kind, kind.lower())


def _shape(tensors: list[Tensor]) -> tuple[int, int] | None:
    """Rows and columns of the one matrix, in values."""
    found = [t for t in tensors if len(t.shape) == 2 and t.name.rpartition(".")[2] in modules.WEIGHTS]
    if len(found) != 1:
        return None
    rows, columns = found[0].shape
    # Two values of four bits in a byte.
    return rows, columns * 2 if found[0].dtype == "U8" else columns


def _parts(checkpoint: Checkpoint, formats: Formats, chosen: Mapping[str, str]) -> list[Part]:
    """The modules. ``chosen``: names of tensors that can be made smaller at load, and by which option."""
    layers = checkpoint.text.get("num_hidden_layers")
    count = layers if isinstance(layers, int) else 0
    tied = checkpoint.text.get("tie_word_embeddings") is True
    said = {module.name: form.weight for module, form in formats.modules}
    known: dict[str, Module] = {}
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for tensor in checkpoint.tensors:
        name, _, leaf = tensor.name.rpartition(".")
        module = known.get(name) or known.setdefault(name, module_of(name, count))
        component = _component(name, leaf, module)
        if component == words.EMBEDDING and tied:
            component = words.HEAD
        groups.setdefault((module.name, component), []).append(tensor)
    experts = checkpoint.experts or 0
    made = []
    for (name, component), tensors in groups.items():
        kept = size.weight_bytes(tensors, None, _ELEMENT)
        sides = {chosen[tensor.name] for tensor in tensors if tensor.name in chosen}
        smaller = {
            form: size.weight_bytes(
                tensors, None, _ELEMENT, {tensor: form for tensor in tensors if tensor.name in chosen}
            )
            for form in (words.FP8, words.NVFP4)
        }
        routed = known[tensors[0].name.rpartition(".")[0]].role == modules.EXPERTS
        made.append(
            Part(
                name,
                component,
                _word(tensors, said.get(name, "")),
                kept,
                len(tensors),
                _layer(name),
                _shape(tensors),
                experts if routed else 0,
                next(iter(sides), ""),
                smaller[words.FP8],
                smaller[words.NVFP4],
            )
        )
    return made


def _chosen(checkpoint: Checkpoint, formats: Formats) -> dict[str, str]:
    """Names of tensors that `gb10 serve` can make smaller at load, and the option that says so."""
    dense = routing.requantised(checkpoint, target(formats, dense=words.FP8), _ELEMENT)
    head = routing.requantised(checkpoint, target(formats, head=words.FP8), _ELEMENT)
    return {tensor.name: words.DENSE_SIDE for tensor in dense} | {
        tensor.name: words.HEAD_SIDE for tensor in head
    }


def read_model(checkpoint: Checkpoint, formats: Formats) -> Model:
    """What a decoded token reads of a checkpoint.

    Args:
        checkpoint: With its config and its headers' tensors.
        formats: What vLLM reads in it (`gb10.checkpoint.formats.read`).

    Raises:
        UserError: It has no safetensors files, or vLLM does not have its architecture.
    """
    if not checkpoint.tensors:
        others = sorted(file.name for file in checkpoint.files)
        more = f" (it has {others[0]})" if others else ""
        raise UserError(
            f"model {checkpoint.name} has no safetensors files{more}, and only their headers say what it "
            "holds; convert it, or take a checkpoint in safetensors"
        )
    check_counts(checkpoint)
    spark = target(formats)
    cache = size.cache_shape(checkpoint.config, max(spark.kv_bits // 8, 1))
    parts = tuple(_parts(checkpoint, formats, _chosen(checkpoint, formats)))
    recurrent = {
        part.layer for part in parts if part.component in (words.GDN, words.GDN_IN) and part.layer is not None
    }
    one = layer_state(checkpoint, formats.model_dtype)
    state = cache.per_sequence if one is None or not recurrent else one * len(recurrent)
    top = next((n for key in _TOP if isinstance(n := checkpoint.text.get(key), int) and n > 0), 0)
    experts = checkpoint.experts or 0
    return Model(
        checkpoint.label,
        str(checkpoint.config["architectures"][0]),
        formats.method,
        parts,
        experts,
        min(top, experts) or experts,
        longest(checkpoint),
        spark.kv_bits,
        cache,
        state,
        len(recurrent),
    )
