"""In which format a checkpoint holds each module, and its KV cache: the one record that all else asks.

vLLM's own configuration classes read it (`gb10.checkpoint.vllm_formats`); a checkpoint without any
quantisation needs no vLLM. The record travels between processes as JSON.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.modules import ROUTER, Module, modules_of, sections
from gb10.errors import UserError


@dataclass(frozen=True, order=True)
class Format:
    """How a module's weights are stored and its activations computed; "" is the model's own dtype.

    Words: nvfp4, mxfp4, mxfp8, fp8 (one scale a tensor), fp8_channel, fp8_block, int4, int8; for what
    has no word here the name of vLLM's class or key.
    """

    weight: str = ""
    activation: str = ""

    def __str__(self) -> str:
        if not self.weight:
            return "plain"
        return f"{self.weight}, activations {self.activation or 'as they are'}"


@dataclass(frozen=True)
class Formats:
    """The formats of a checkpoint.

    ``method`` is vLLM's name for its quantisation (``modelopt_fp4``, ...), "" for none. ``kv_cache`` is what
    vLLM makes of ``--kv-cache-dtype auto``: auto is the model's dtype. ``dtype`` is the config's word for
    that, "" where it has none. ``trouble`` is why vLLM will refuse the checkpoint, "" if nothing is known.
    """

    method: str = ""
    kv_cache: str = "auto"
    dtype: str = ""
    modules: tuple[tuple[Module, Format], ...] = ()
    trouble: str = ""

    def of(self, *roles: str, drafts: bool = False) -> list[Format]:
        """The formats of the modules with these roles (all without), each once. ``drafts``: MTP's too."""
        return sorted(
            {
                form
                for module, form in self.modules
                if (module.role in roles if roles else module.role != ROUTER) and (drafts or not module.draft)
            }
        )

    @property
    def model_dtype(self) -> str:
        """The model's dtype where the user names none: bfloat16 for a checkpoint in float32, as in vLLM."""
        return self.dtype if self.dtype in ("bfloat16", "float16") else "bfloat16"

    def check(self, name: str) -> None:
        """Raise UserError for a checkpoint, which the user calls ``name``, that vLLM will refuse."""
        if self.trouble:
            raise UserError(
                f"vLLM does not take the quantisation of {name}: {self.trouble}; "
                "correct quantization_config in config.json (or hf_quant_config.json), or take another model"
            )

    def json(self) -> dict[str, Any]:
        """This record as what JSON holds; modules of one format share an entry."""
        groups: dict[tuple[str, bool, Format], list[str]] = {}
        for module, form in self.modules:
            groups.setdefault((module.role, module.draft, form), []).append(module.name)
        listed = [
            {"role": role, "draft": draft, **asdict(form), "names": names}
            for (role, draft, form), names in groups.items()
        ]
        return {
            "method": self.method,
            "kv_cache": self.kv_cache,
            "dtype": self.dtype,
            "modules": listed,
            "trouble": self.trouble,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Formats":
        """The record that `json` gave."""
        modules = [
            (Module(name, group["role"], group["draft"]), Format(group["weight"], group["activation"]))
            for group in value["modules"]
            for name in group["names"]
        ]
        return Formats(value["method"], value["kv_cache"], value["dtype"], tuple(modules), value["trouble"])


def config_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that a config.json names (``bfloat16``, ...), "" where it has none."""
    text = config.get("text_config")
    for section in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(section.get(key), str):
                return str(section[key]).removeprefix("torch.")
    return ""


def unread(checkpoint: Checkpoint) -> Formats:
    """What can be said before vLLM is asked: nothing that would refuse a checkpoint which then fits."""
    return Formats(
        kv_cache="fp8" if any(sections(checkpoint)) else "auto", dtype=config_dtype(checkpoint.config)
    )


@contextmanager
def quiet() -> Iterator[None]:
    """What vLLM and torch log while they are imported and asked is not for the user.

    vLLM says it again when it starts.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def read(checkpoint: Checkpoint) -> Formats:
    """Read the formats of a checkpoint. vLLM is imported (seconds) where there is a quantisation to ask."""
    modules = modules_of(checkpoint)
    said = next(sections(checkpoint), None)
    if not checkpoint.config or (said is None and not checkpoint.quantization):
        plain = tuple((module, Format()) for module in modules)
        return Formats(dtype=config_dtype(checkpoint.config), modules=plain)
    with quiet():
        from gb10.checkpoint.vllm_formats import ask

    return ask(checkpoint, modules)


def report(checkpoint: Checkpoint) -> dict[str, Any]:
    """The record as vLLM's process gives it to `gb10 serve`."""
    return read(checkpoint).json()
