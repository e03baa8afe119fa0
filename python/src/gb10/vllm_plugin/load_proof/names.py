"""What the checkpoint's tensors would be called that should have filled a part of a parameter.

vLLM knows no way back from its parameters to a checkpoint's names. But a checkpoint is regular: what fills
the same part in another layer, or of another expert, has the name that is missing but for a number.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from gb10.vllm_plugin.load_proof.coverage import Region

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Filled:
    """A parameter of the model: its bytes [``start``, ``start + size``) in a storage, and who wrote where.

    ``slices`` is the length of its first dimension (experts), 1 where it has but one.
    """

    name: str
    start: int
    size: int
    slices: int
    regions: Mapping[Region, str | None]

    @property
    def kind(self) -> tuple[str, int]:
        """The same for the parameters that differ in the layer only."""
        return _NUMBER.sub("#", self.name), self.size

    def writers(self) -> dict[int, tuple[str, int]]:
        """Where a checkpoint's tensor begins, in bytes from the parameter's start: its name, and how long."""
        return {
            one.start - self.start: (writer, one.run)
            for one, writer in self.regions.items()
            if writer is not None and not one.outer and self.start <= one.start < self.start + self.size
        }


def renumber(name: str, old: Sequence[str], new: Sequence[str]) -> str:
    """``name`` with the numbers ``old``, which it must begin with, replaced by ``new``."""
    parts = iter(new)
    numbers = _NUMBER.findall(name)
    if numbers[: len(old)] != list(old):
        return name
    return _NUMBER.sub(lambda match: next(parts, match[0]), name)


def _with_expert(name: str, old: int, new: int) -> str:
    """``name`` with the expert ``old`` replaced by ``new``; the last such number is the expert's."""
    found = [match for match in _NUMBER.finditer(name) if match[0] == str(old)]
    return name if not found else f"{name[: found[-1].start()]}{new}{name[found[-1].end() :]}"


def renamed(parameter: str, known: Iterable[tuple[str, str]]) -> str:
    """What a checkpoint calls ``parameter``, by what it calls its neighbours.

    ``known`` are names of parameters and of the tensors that fill them. Where these end alike, what stands
    before may differ (vLLM's ``model.norm.weight`` is ``mtp.norm.weight``); the nearest neighbours tell.
    """
    parts = parameter.split(".")
    found: Counter[tuple[int, int, tuple[str, ...]]] = Counter()
    for own, theirs in known:
        old, new = own.split("."), theirs.split(".")
        near = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, parts, strict=False)))
        ends = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old[::-1], new[::-1], strict=False))
        )
        begins = len(old) - ends
        if ends and begins <= near:
            found[near, begins, tuple(new[: len(new) - ends])] += 1
    if not found:
        return parameter
    (_, begins, new_start), _ = max(found.items(), key=lambda item: (item[0][0], item[1]))
    return ".".join([*new_start, *parts[begins:]])


def missing(
    parameter: Filled, gap: tuple[int, int], others: Sequence[Filled], present: Collection[str]
) -> Iterator[str]:
    """Names of the tensors that would fill ``gap``, as far as they can be told.

    ``others`` are the parameters of the same kind, ``present`` the names that the checkpoint has. Nothing for
    a part that no other layer or expert has filled.
    """
    at, last = gap
    numbers = _NUMBER.findall(parameter.name)
    layers = [
        (_NUMBER.findall(other.name), other.writers()) for other in others if other.name != parameter.name
    ]
    own = parameter.writers()
    step = parameter.size // max(parameter.slices, 1)
    while at < last:
        length = 0
        for other, writers in layers:
            if at in writers:
                writer, length = writers[at]
                name = renumber(writer, other, numbers)
                break
        else:
            for expert in range(parameter.slices if parameter.slices > 1 else 0):
                if (found := own.get(at % step + expert * step)) is not None:
                    name, length = _with_expert(found[0], expert, at // step), found[1]
                    break
        if not length:
            return
        if name not in present:
            yield name
        at += length
