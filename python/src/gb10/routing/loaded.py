"""What a target makes of a checkpoint's matrices while it is loaded."""

from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.headers import Tensor
from gb10.routing.rules import Target
from gb10.vllm_plugin.cuda.requant import names
from gb10.vllm_plugin.cuda.settings import Format

_SIXTEEN_BIT = 2
_FLOATS = ("BF16", "F16", "F32")
"""Types of the file that vLLM turns into the model's."""


def requantised(checkpoint: Checkpoint, target: Target, element: int) -> dict[Tensor, str]:
    """The 16 bit matrices of the checkpoint that become something else at load, and what: fp8 or nvfp4.

    As `gb10.vllm_plugin.cuda.requant` does: the dense side and the head of checkpoints that are quantised,
    where the model's type has 16 bit and the head is no embedding.
    """
    quantised = "quantization_config" in checkpoint.config or "quantization_config" in checkpoint.text
    if target.capability is None or not quantised or element != _SIXTEEN_BIT:
        return {}
    forms = {}
    for tensor in checkpoint.tensors:
        module, _, leaf = tensor.name.rpartition(".")
        form = Format.KEEP
        if names.is_dense(module):
            form = Format(target.dense)
        elif names.is_head(module) and checkpoint.text.get("tie_word_embeddings") is not True:
            form = Format(target.head)
        fits = leaf == "weight" and len(tensor.shape) == 2 and tensor.shape[1] % names.COLUMN_UNIT == 0
        if form is not Format.KEEP and fits and tensor.dtype in _FLOATS:
            forms[tensor] = str(form)
    return forms
