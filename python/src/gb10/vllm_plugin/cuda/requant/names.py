"""Which layers `--dense` and `--head` are about, by name. Light: no torch, no vLLM.

The dense side is what every token reads beside its experts: the projections of both kinds of attention, plain
MLPs and the shared expert. Routers and gates stay as they are (they are small, and what they choose changes
the whole layer), and so do convolutions, norms and vision towers.
"""

_OF_PARENT = {
    "self_attn": ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj"),
    "linear_attn": (
        *("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
        "out_proj",
    ),
    "mlp": ("gate_up_proj", "gate_proj", "up_proj", "down_proj"),
    "shared_expert": ("gate_up_proj", "gate_proj", "up_proj", "down_proj"),
}
"""Layers of vLLM and of checkpoints, by the module that holds them: vLLM fuses q, k, v and gate, up."""

_TOWERS = frozenset({"visual", "vision_tower", "vision_model", "audio_tower"})

HEAD = "lm_head"

ATTRIBUTE = "gb10_dense"
"""Where a layer has its requantised matrix (`dense.Dense`), once its weights are loaded."""

REPORT_NAME = "GB10_REQUANT_REPORT"
LIMIT_NAME = "GB10_MAX_REQUANT_ERROR"
"""Variables: the JSON file of the report, and the largest relative error of a matrix that is served."""

COLUMN_UNIT = 64
"""The kernels take weights whose rows are multiples of this."""


def is_dense(module: str) -> bool:
    """Whether a module of vLLM or of a checkpoint (without ``.weight``) belongs to the dense side."""
    parts = module.split(".")
    return len(parts) > 1 and parts[-1] in _OF_PARENT.get(parts[-2], ()) and _TOWERS.isdisjoint(parts)


def is_head(module: str) -> bool:
    """Whether a module of vLLM or of a checkpoint is the output head."""
    return module.rpartition(".")[2] == HEAD
