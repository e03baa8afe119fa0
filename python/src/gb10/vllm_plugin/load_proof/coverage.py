"""Which bytes of a tensor were written: regions of a storage, and what they leave out; for any strides."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Region:
    """``run`` bytes of a storage from ``start`` on, repeated along ``outer``: (count, stride in bytes)."""

    start: int
    run: int
    outer: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """The first byte after the last one."""
        return self.start + self.run + sum((count - 1) * stride for count, stride in self.outer)


def region(offset: int, shape: Sequence[int], strides: Sequence[int], item: int) -> Region | None:
    """The bytes of a view; ``offset`` and ``strides`` count elements of ``item`` bytes. None for an empty.

    Neighbouring dimensions are merged, so that views of the same bytes give the same region.
    """
    if 0 in shape:
        return None
    # A stride of 0 reads the same bytes again.
    dimensions = sorted((s * item, n) for n, s in zip(shape, strides, strict=True) if n > 1 and s > 0)
    run = item
    outer: list[tuple[int, int]] = []
    for stride, count in dimensions:
        if stride == run and not outer:
            run *= count
        elif outer and stride == outer[-1][0] * outer[-1][1]:
            outer[-1] = (outer[-1][0] * count, outer[-1][1])
        else:
            outer.append((count, stride))
    return Region(offset * item, run, tuple(outer))


def gaps(whole: Region, written: Iterable[Region]) -> list[tuple[int, int]]:
    """Parts of ``whole`` that none of ``written`` covers, as [first, last) in bytes from its start.

    For a ``whole`` with holes of its own, bytes in the holes are no gaps.
    """
    listed = set(written)
    if whole in listed:
        return []
    if not whole.outer and not any(one.outer for one in listed):
        return _between(whole, listed)
    return _marked(whole, listed)


def _between(whole: Region, written: set[Region]) -> list[tuple[int, int]]:
    found, reached = [], whole.start
    for one in sorted(written, key=lambda one: one.start):
        if one.start >= whole.end:
            break
        if one.start > reached:
            found.append((reached - whole.start, one.start - whole.start))
        reached = max(reached, one.end)
    if reached < whole.end:
        found.append((reached - whole.start, whole.end - whole.start))
    return found


def _marked(whole: Region, written: set[Region]) -> list[tuple[int, int]]:
    """The same with a map of the bytes, one mark for each stretch that no region divides."""
    near = [one for one in written if one.start < whole.end and one.end > whole.start]
    first = min([whole.start, *(one.start for one in near)])
    last = max([whole.end, *(one.end for one in near)])
    grain = 0
    for one in (whole, *near):
        grain = math.gcd(grain, one.start - first, one.run, *(stride for _, stride in one.outer))

    def view(marks: torch.Tensor, one: Region) -> torch.Tensor:
        sizes = [*(count for count, _ in reversed(one.outer)), one.run // grain]
        strides = [*(stride // grain for _, stride in reversed(one.outer)), 1]
        return marks.as_strided(sizes, strides, (one.start - first) // grain)

    missing = torch.zeros((last - first) // grain, dtype=torch.bool, device="cpu")
    view(missing, whole).fill_(True)
    for one in near:
        view(missing, one).fill_(False)
    edges = torch.diff(missing.to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8, device="cpu"))
    begins = torch.nonzero(edges == 1).flatten().tolist()
    ends = torch.nonzero(edges == -1).flatten().tolist()
    if len(ends) < len(begins):
        ends.append(missing.numel())
    shift = first - whole.start
    return [(a * grain + shift, b * grain + shift) for a, b in zip(begins, ends, strict=True)]
