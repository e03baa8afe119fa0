"""What one step of decoding does: the bytes that each kind of kernel reads, and how often it is launched."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gb10.predict.architecture import BITS, Architecture, spread

READS = (
    "read 16 bit",
    "read 8 bit",
    "read 4 bit",
    "read experts",
    "read KV cache",
    "recurrent state",
)
"""Kinds that cost by the byte. What the state writes counts as read."""

COUNTS = ("matrix", "attention layer", "GDN layer", "expert layer", "launch", "step")
"""Kinds that cost by the piece: what a kernel of it takes beside its bytes. With ``matrix`` a small read
takes (bytes + half) / rate, half being that piece times the rate."""

KINDS = (*READS, *COUNTS)

_WIDTH = {"bf16": READS[0], "fp8": READS[1], "q8_0": READS[1]}
_KV = {"bf16": 2.0, "fp8": 1.0, "nvfp4": 0.5625}
KV_FORMATS = tuple(_KV)


def kv_bytes_of(form: str) -> float:
    """Bytes of a number in a KV cache of this type, one of `KV_FORMATS`."""
    return _KV[form]


_NORMS, _RESIDUAL, _SHARED = 2, 4, 3
"""Small launches of a layer: residual and norm; a read or write of residual branches; the shared expert's
activation, gate and sum."""

_MARLIN = (256, 128)
"""To which tiles vLLM pads hidden and intermediate size of MXFP4 experts (fused_moe/oracle/mxfp4.py)."""


@dataclass(frozen=True)
class Sizes:
    """What a model's step is made of. Bytes and counts of all layers together.

    Attributes:
        weights: Kind of `READS` to bytes of weights that every step reads, routed experts left out.
        matrices: Matrices among them; ``quantised``: those that are not in 16 bit.
        expert: Bytes of one routed expert in each layer of experts; ``experts``, ``chosen``: how many a layer
            has and a token takes.
        state: Bytes that a token of one sequence reads and writes of recurrent states.
        kv_token: Bytes that a token of context is in the KV cache of layers that read all of it,
            ``kv_window``, ``window``: the same for those with a sliding window, and its tokens;
            ``attended``: the most tokens that a layer reads, 0 for all.
        layers, attention, gdn, moe, shared, mlp, branched: Layers, and those with each part.
        head: Bytes of lm_head; ``draft``: what a draft's layer reads beside it; ``draft_kind``: its kind.
    """

    weights: Mapping[str, float]
    matrices: int
    quantised: int
    layers: int
    attention: int
    gdn: int = 0
    moe: int = 0
    shared: int = 0
    mlp: int = 0
    branched: int = 0
    expert: float = 0.0
    experts: int = 0
    chosen: int = 0
    state: float = 0.0
    kv_token: float = 0.0
    kv_window: float = 0.0
    window: int = 0
    attended: int = 0
    head: float = 0.0
    head_kind: str = READS[0]
    draft: float = 0.0
    draft_kind: str = READS[0]

    def kv_bytes(self, context: int) -> float:
        """Bytes of keys and values that a token of one sequence reads."""
        full = min(context, self.attended) if self.attended else context
        return self.kv_token * full + self.kv_window * min(context, self.window)


def sizes_of(
    model: Architecture, formats: Mapping[str, str], *, kv: str = "bf16", padded: bool = False
) -> Sizes:
    """The sizes of an architecture in these formats. ``padded``: MXFP4 experts as vLLM pads them."""
    forms = spread(formats)
    weights = dict.fromkeys(READS, 0.0)
    matrices = quantised = 0
    for part, (count, values) in model.matrices().items():
        weights[_WIDTH.get(forms[part], READS[2])] += values * BITS[forms[part]] / 8
        matrices += count
        quantised += count if forms[part] != "bf16" else 0
    tiles = _MARLIN if padded and forms["experts"] == "mxfp4" else (1, 1)
    moe = model.layers if model.experts else 0
    token = 2 * model.kv_heads * model.head_size * _KV[kv]
    single = replace(model, layers=1, gdn_layers=0, sliding_layers=0, residual_rank=0, ngram_layers=0)
    drafter = sum(values for part, (_, values) in single.matrices().items() if part != "head")
    return Sizes(
        weights,
        matrices,
        quantised,
        layers=model.layers,
        attention=model.attention_layers,
        gdn=model.gdn_layers,
        moe=moe,
        shared=moe if model.shared_intermediate else 0,
        mlp=model.layers if model.intermediate else 0,
        branched=model.layers if model.residual_rank else 0,
        expert=moe * model.expert_values(*tiles) * BITS[forms["experts"]] / 8,
        experts=model.experts,
        chosen=model.experts_per_token,
        state=model.state_bytes,
        kv_token=token * (model.attention_layers - model.sliding_layers),
        kv_window=token * model.sliding_layers,
        window=model.sliding_window,
        attended=model.attended,
        head=model.hidden * model.vocabulary * BITS[forms["head"]] / 8,
        head_kind=_WIDTH.get(forms["head"], READS[2]),
        # MTP is BF16 in the published checkpoints: two hidden states in, a layer of attention, its experts.
        draft=2.0
        * (2 * model.hidden**2 + drafter + model.experts_per_token * model.expert_values())
        * model.mtp_layers,
    )


@dataclass(frozen=True)
class Load:
    """What is decoded: ``sequences`` at once, ``context`` tokens of each, ``drafts`` of MTP to a step.

    ``experts``: how many distinct experts of a layer the step's tokens are routed to, on average; None where
    one token is decoded.
    """

    sequences: int = 1
    context: int = 0
    drafts: int = 0
    experts: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the target model decodes or verifies in a step."""
        return self.sequences * (1 + self.drafts)


def work(sizes: Sizes, load: Load, *, activations: str = "bf16") -> dict[str, float]:
    """Kind of `KINDS` to bytes or counts of one step, by the launches of stock vLLM (docs/engine.md).

    ``activations``: what linear layers are given; other than bf16 they are quantised first.
    """
    result = dict.fromkeys(KINDS, 0.0) | dict(sizes.weights)
    distinct = float(sizes.chosen) if load.experts is None else load.experts
    result["read experts"] += sizes.expert * distinct
    result["read KV cache"] = load.sequences * sizes.kv_bytes(load.context)
    result["recurrent state"] = load.sequences * sizes.state
    result["matrix"] = sizes.matrices
    result["attention layer"] = sizes.attention
    result["GDN layer"] = sizes.gdn
    result["expert layer"] = sizes.moe
    result["launch"] = (
        _NORMS * sizes.layers
        + _SHARED * sizes.shared
        + sizes.mlp
        + 2 * _RESIDUAL * sizes.branched
        + (sizes.quantised + sizes.moe if activations != "bf16" else 0)
    )
    result["step"] = 1.0
    # Each draft is a pass through MTP's layer and the head.
    result[sizes.draft_kind] += load.drafts * sizes.draft
    result[sizes.head_kind] += load.drafts * sizes.head
    result["matrix"] += load.drafts * 6
    result["attention layer"] += load.drafts
    result["expert layer"] += load.drafts * (1 if sizes.moe else 0)
    result["launch"] += load.drafts * _NORMS
    return result
