"""The shapes of a model that decide what a decoded token reads, and the number formats of its parts."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

BITS: Mapping[str, float] = {
    "bf16": 16.0,
    "fp8": 8.0,
    "q8_0": 8.5,
    "nvfp4": 4.5,
    "mlx4": 4.5,
    "mxfp4": 4.25,
}
"""Bits of a value, block scales included."""

DENSE = ("attention_in", "attention_out", "gdn_in", "gdn_out", "mlp", "shared")
"""Parts that ``dense`` of a table of formats stands for."""

PARTS = (*DENSE, "experts", "head", "router", "gdn_gates", "residual", "extra")
"""All parts with weights. The last four are BF16 unless a table of formats says otherwise."""

_OTHERS = ("router", "gdn_gates", "residual", "extra")


@dataclass(frozen=True)
class Architecture:
    """One model's shapes, named after the keys of its config.json; 0 where it has no such part.

    ``attended``: the most tokens that a layer of attention reads (sparse attention), 0 for all. ``shipped``
    and ``kv``: formats of the checkpoint's parts and of its KV cache. ``context``: max_position_embeddings, 0
    where it is not known. ``state_bits``: of a number of the
    recurrent state.
    """

    name: str
    family: str
    source: str
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    gated_attention: bool = False
    sliding_layers: int = 0
    sliding_window: int = 0
    attended: int = 0
    intermediate: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    gdn_layers: int = 0
    gdn_key_heads: int = 0
    gdn_value_heads: int = 0
    gdn_head_size: int = 0
    residual_branches: int = 0
    residual_rank: int = 0
    indexer_heads: int = 0
    indexer_head_size: int = 0
    ngram_layers: int = 0
    mtp_layers: int = 0
    state_bits: int = 32
    kv: str = "bf16"
    context: int = 0
    shipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def attention_layers(self) -> int:
        """Layers of attention, those with a sliding window too."""
        return self.layers - self.gdn_layers

    def expert_values(self, hidden_tile: int = 1, tile: int = 1) -> int:
        """Weights of one routed expert, its sizes rounded up to tiles."""
        hidden = -(-self.hidden // hidden_tile) * hidden_tile
        return 3 * hidden * -(-self.expert_intermediate // tile) * tile

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Part to (matrices of it that a token reads, weights of all of them); without routed experts."""
        query = self.heads * self.head_size
        pair = 2 * self.kv_heads * self.head_size
        values = self.gdn_value_heads * self.gdn_head_size
        keys = self.gdn_key_heads * self.gdn_head_size
        branches = self.residual_branches * self.hidden
        dense = self.layers if self.intermediate else 0
        moe = self.layers if self.experts else 0
        shared = moe if self.shared_intermediate else 0
        result = {
            "attention_in": (
                self.attention_layers,
                self.attention_layers * self.hidden * (query * (2 if self.gated_attention else 1) + pair),
            ),
            "attention_out": (self.attention_layers, self.attention_layers * query * self.hidden),
            "gdn_in": (self.gdn_layers, self.gdn_layers * self.hidden * 2 * (keys + values)),
            "gdn_gates": (self.gdn_layers, self.gdn_layers * self.hidden * 2 * self.gdn_value_heads),
            "gdn_out": (self.gdn_layers, self.gdn_layers * values * self.hidden),
            "mlp": (2 * dense, dense * 3 * self.hidden * self.intermediate),
            "shared": (2 * shared, shared * 3 * self.hidden * self.shared_intermediate),
            "router": (moe, moe * self.hidden * self.experts),
            # A read of the branches before each half of a layer, and one before the head.
            "residual": (
                2 * (2 * self.layers + 1) if self.residual_rank else 0,
                (2 * self.layers + 1) * 2 * branches * self.residual_rank,
            ),
            "extra": (
                (self.attention_layers if self.indexer_heads else 0) + self.ngram_layers,
                self.attention_layers * self.hidden * self.indexer_heads * self.indexer_head_size
                + self.ngram_layers * (1 + self.residual_branches) * self.hidden * self.hidden,
            ),
            "head": (1, self.hidden * self.vocabulary),
        }
        return {part: sizes for part, sizes in result.items() if sizes[1]}

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence's recurrent states that a token reads and writes, both counted."""
        return 2 * self.gdn_layers * self.gdn_value_heads * self.gdn_head_size**2 * self.state_bits // 8

    def kv_bytes(self, context: int, value: float = 2) -> float:
        """Bytes of keys and values that a token of one sequence reads. ``value``: bytes of one number."""
        token = 2 * self.kv_heads * self.head_size * value
        full = min(context, self.attended) if self.attended else context
        return token * (
            (self.attention_layers - self.sliding_layers) * full
            + self.sliding_layers * min(context, self.sliding_window)
        )


def spread(formats: Mapping[str, str]) -> dict[str, str]:
    """A table of formats with each part named. Raises ValueError for a part or format that is not known."""
    for part, form in formats.items():
        if part not in (*PARTS, "dense"):
            raise ValueError(f"no part of a model is called {part!r}")
        if form not in BITS:
            raise ValueError(f"no number format is called {form!r}")
    result = dict.fromkeys(PARTS, formats.get("dense", "bf16"))
    result |= dict.fromkeys(_OTHERS, "bf16") | {"head": "bf16", "experts": "bf16"}
    return result | {part: form for part, form in formats.items() if part != "dense"}


@cache
def architectures() -> Mapping[str, Architecture]:
    """The architectures of architectures.toml, by name."""
    text = (files("gb10.predict") / "architectures.toml").read_text()
    return {name: Architecture(name, **table) for name, table in tomllib.loads(text).items()}
