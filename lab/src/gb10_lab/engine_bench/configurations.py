"""What is compared: stock vLLM as it comes and at its best, and gb10 with each choice for dense and head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gb10.errors import UserError

STOCK = "stock"


@dataclass(frozen=True)
class Configuration:
    """One engine: the environment of its process, and arguments of ``vllm.LLM``."""

    name: str
    about: str
    environment: dict[str, str]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_stock(self) -> bool:
        """Whether it is a baseline."""
        return self.name.startswith(STOCK)


# An empty list would mean all plug-ins: no plug-in has this name.
_WITHOUT_US = {"VLLM_PLUGINS": "none"}


def _stock(name: str, about: str, **arguments: Any) -> Configuration:
    return Configuration(f"{STOCK}-{name}", about, _WITHOUT_US, arguments)


def _ours(dense: str, head: str) -> Configuration:
    name = f"ours-{dense}" if dense == head else f"ours-{dense}-head-{head}"
    chosen = {"GB10_ENGINE": "gb10", "GB10_DENSE": dense, "GB10_HEAD": head}
    return Configuration(
        name, f"gb10's kernels, --dense {dense} --head {head}", {"VLLM_PLUGINS": "gb10", **chosen}
    )


_FP8_TARGETS = {
    "targets": {"re:.*in_proj_qkvz": "fp8_per_channel", r"re:.*self_attn\.[qkv]_proj": "fp8_per_channel"}
}
_KNOWN = (
    _stock("default", "vLLM as it comes"),
    _stock("fp8", "vLLM's own FP8 for in_proj_qkvz and q, k, v", quantization_config=_FP8_TARGETS),
    _stock("marlin", "Marlin for linears and experts", moe_backend="marlin", linear_backend="marlin"),
    _ours("keep", "keep"),
    _ours("fp8", "fp8"),
    _ours("nvfp4", "nvfp4"),
    _ours("fp8", "nvfp4"),
)
CONFIGURATIONS = {each.name: each for each in _KNOWN}


def choose(name: str) -> Configuration:
    """The configuration of that name. Raises UserError when there is none."""
    if name not in CONFIGURATIONS:
        raise UserError(f"--config {name}: choose from {', '.join(CONFIGURATIONS)}")
    return CONFIGURATIONS[name]
