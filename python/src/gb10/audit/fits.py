"""How many sequences fit on a machine, by the budget that `gb10 serve` starts with (`gb10.serve.budget`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gb10.audit.model import FP8, Model
from gb10.audit.reading import GB10, target
from gb10.checkpoint import modules, size
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Formats
from gb10.checkpoint.headers import Tensor
from gb10.errors import UserError
from gb10.machine import memory
from gb10.machine.gpu import Gpu
from gb10.serve import budget
from gb10.serve.settings import parse
from gb10.units import GIB

CONTEXTS = tuple(1024 * length for length in (8, 16, 32, 64, 128, 256))

SYSTEM = 4 * GIB
"""What the system has taken of a machine on which nothing else runs; assumed."""

SPARKS = {"128 GB": 128_526_123_008, "64 GB": 64_263_061_504}
"""Bytes of a DGX Spark as its kernel counts them (119.7 GiB), and half of that for the smaller one."""


@dataclass(frozen=True)
class Fit:
    """A machine with ``memory`` bytes, called ``name``.

    ``sequences`` are how many of each context fit at once, ``context`` is the longest that one can have.
    ``refusal`` is what `gb10 serve` says where not even the shortest fits.
    """

    name: str
    memory: int
    sequences: dict[int, int]
    context: int
    refusal: str = ""


def _slim(checkpoint: Checkpoint) -> Checkpoint:
    """The same bytes with the experts of a layer as one tensor: the budget adds them up again and again."""
    rest: list[Tensor] = []
    experts: dict[str, int] = {}
    for tensor in checkpoint.tensors:
        name = tensor.name.rpartition(".")[0]
        # A matrix in F32 becomes one in 16 bit, so it must be seen.
        if modules.role_of(name) == modules.EXPERTS and (tensor.dtype != "F32" or len(tensor.shape) < 2):
            module = modules.module_of(name).name
            experts[module] = experts.get(module, 0) + tensor.size
        else:
            rest.append(tensor)
    rest += [Tensor(f"{name}.all", "U8", (total,), total) for name, total in experts.items()]
    return replace(checkpoint, tensors=tuple(rest))


def _room(checkpoint: Checkpoint, formats: Formats, total: int, context: int) -> int:
    """Bytes that vLLM gets. Raises UserError where the model does not fit with that context."""
    settings = parse([checkpoint.name, "--max-model-len", str(context)], {})
    machine = Gpu("GB10", GB10, total, unified=True)
    free = memory.Available(total - SYSTEM, "of a machine on which nothing else runs", total)
    budget.on_gpu(settings, checkpoint, target(formats, FP8, FP8), [machine], free)
    return int(total * (settings.gpu_memory_utilization or 0))


def fits(
    model: Model,
    checkpoint: Checkpoint,
    formats: Formats,
    machines: dict[str, int],
    contexts: Sequence[int] = CONTEXTS,
) -> list[Fit]:
    """How many sequences fit on each of ``machines`` (name to bytes), with what `gb10 serve` does unasked.

    That is ``--dense fp8 --head fp8``, and the share of memory that it takes.
    """
    slim = _slim(checkpoint)
    weights = model.requantised(FP8, FP8).weights
    longest = model.context or contexts[-1]
    asked = [context for context in contexts if context <= longest]
    found = []
    for name, total in machines.items():
        sequences: dict[int, int] = {}
        most, refusal = 0, ""
        for context in asked or [longest]:
            try:
                left = _room(slim, formats, total, context) - weights - size.OVERHEAD
            except UserError as error:
                sequences[context] = 0
                refusal = refusal or str(error)
                continue
            one = model.cache.sequence(context)
            sequences[context] = left // one if one else 0
            most = min(max(most, model.cache.tokens(left)), longest)
        found.append(Fit(name, total, sequences, most, "" if most else refusal))
    return found
