"""Records which bytes of which storages are written while a model is built and loaded.

Every operation of torch passes a dispatch mode, and its schema says which arguments it writes. So this sees
each copy of each loader of vLLM, whatever it narrows, whatever part of a fused parameter it fills. Nothing is
read or compared: there is no poison that a weight could equal by chance, and packed 4-bit codes have no value
that could serve as one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily
from torch.utils._pytree import tree_iter

from gb10.vllm_plugin.load_proof.coverage import Region, gaps, region

_ALLOCATE = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)
"""What gives memory that nobody has written."""

_OVERWRITE = frozenset(
    f"aten::{name}"
    for name in (
        *("copy_", "fill_", "zero_", "set_", "index_copy_", "index_put_", "scatter_"),
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "eye_"),
    )
)
"""Operations in place that do not need what was there. All others (mul_, clamp_, ...) change what is there,
and are no proof. The indexed ones count as writing all of their argument, which is more than they do; no
loader of vLLM 0.32.0 uses them."""

_Role = tuple[bool, tuple[tuple[int, str], ...]]
"""It allocates raw memory; positions and names of the arguments that it overwrites."""

_NOTHING: _Role = (False, ())
_END = object()
_T = TypeVar("_T")


_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten.fill_.Tensor)
"""What writes one tensor into another, with its values converted to the type and its shape spread."""


@dataclass(frozen=True)
class Given:
    """A tensor of the checkpoint, as a loader gets it, and which of its bytes were read."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    at: tuple[int, Region] | None = None
    read: set[Region] = field(default_factory=set)

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Self:
        """Take down a tensor, without keeping it."""
        return cls(name, tensor.dtype, tuple(tensor.shape), place(tensor))

    def in_part(self) -> bool:
        """Whether some of it was read and some was not."""
        return self.at is not None and bool(self.read) and bool(gaps(self.at[1], self.read))


@dataclass(frozen=True)
class Copy:
    """One copy into a storage. ``exact``: the target has the source's numbers, repeated."""

    source: torch.dtype
    target: torch.dtype
    exact: bool
    numbers: int
    """How many the source has."""


@dataclass
class Storage:
    """What is known of one storage. ``raw``: it came uninitialised. Regions have the writer's name."""

    alive: StorageWeakRef
    raw: bool
    regions: dict[Region, str | None] = field(default_factory=dict)
    doubtful: dict[str, Copy] = field(default_factory=dict)
    """By the writer's name the copies that spread it or changed its numbers."""


def place(tensor: torch.Tensor) -> tuple[int, Region] | None:
    """A tensor's storage, as a number, and its bytes there; None for one that is empty or has no storage."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError, ValueError):
        # Sparse tensors, wrapper subclasses, parameters that have no shape yet.
        return None
    bytes_ = region(int(tensor.storage_offset()), tensor.shape, tensor.stride(), tensor.element_size())
    return None if bytes_ is None else (storage._cdata, bytes_)


def _keeps_numbers(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether ``target`` has the numbers of ``source``, from which it was copied, as far as its type is for.

    Floats of 16 bits and more are rounded to one another, as a model's dtype asks. Integers of one size are
    the same bits. For what has a type that holds fewer numbers, the numbers decide; without any (on the meta
    device) they count as kept. Between integers (booleans too) and floats a copy takes codes for numbers.
    """
    one, other = source.dtype, target.dtype
    if one is other or one.is_complex or other.is_complex:
        return True
    if one.is_floating_point != other.is_floating_point:
        return False
    if one.is_floating_point and other.itemsize > 1:
        return True
    if not one.is_floating_point and one.itemsize == other.itemsize and torch.bool not in (one, other):
        return True
    if source.is_meta or target.is_meta:
        return True
    wide = torch.float32 if one.is_floating_point else torch.int64
    before, after = source.to(target.device, wide), target.to(wide)
    return bool(((before == after) | (before != before) & (after != after)).all())


def _weak(tensor: torch.Tensor) -> StorageWeakRef:
    """While it lives, no other storage has the same number."""
    return StorageWeakRef(tensor.untyped_storage())


class Writes(TorchDispatchMode):
    """While it is active it records. ``given`` is the checkpoint's tensor that is being loaded, if known.

    With ``reads`` it records too what is read of that.
    """

    def __init__(self, *, reads: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given: Given | None = None
        self._reads = reads
        self._views: dict[Any, bool] = {}
        self.storages: dict[int, Storage] = {}
        self._roles: dict[Any, _Role] = {}

    def watch(self, tensor: torch.Tensor) -> None:
        """Record writes to the storage of ``tensor``, which has its content already."""
        if (at := place(tensor)) is not None and at[0] not in self.storages:
            self.storages[at[0]] = Storage(_weak(tensor), raw=False)

    def filled(self, tensor: torch.Tensor) -> None:
        """``tensor`` has content, however it got there: readers of files fill memory without torch."""
        if (at := place(tensor)) is not None and at[0] in self.storages:
            self.storages[at[0]].raw = False

    def forget_writes(self) -> None:
        """Start anew: only what is written from here on counts. What was raw and untouched stays raw."""
        for storage in self.storages.values():
            storage.raw = storage.raw and not storage.regions
            storage.regions.clear()
            storage.doubtful.clear()

    def of(self, tensor: torch.Tensor) -> tuple[Storage, Region] | None:
        """The record of a tensor's storage and its bytes there; None where nothing was recorded."""
        at = place(tensor)
        storage = None if at is None else self.storages.get(at[0])
        return None if at is None or storage is None else (storage, at[1])

    def _role(self, operation: Any) -> _Role:
        """What an operation that was not seen before does."""
        schema = operation._schema
        written = tuple(
            (number, argument.name)
            for number, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        in_place = schema.name.startswith("aten::") and schema.name.endswith("_")
        if in_place and schema.name.replace("_foreach_", "") not in _OVERWRITE:
            written = ()
        allocates = schema.name in _ALLOCATE
        role = self._roles[operation] = (allocates, written) if allocates or written else _NOTHING
        return role

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch puts a wrapper around each call otherwise, which costs more than all that is done here."""
        return False

    def unwatched(self, source: Iterator[_T]) -> Iterator[_T]:
        """The items of ``source``; what it does to make them is not looked at."""
        while True:
            with _pop_mode_temporarily():
                item = next(source, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if self._reads and self.given is not None:
            self._note_reads(func, args, named, self.given)
        role = self._roles.get(func) or self._role(func)
        if role is _NOTHING:
            return func(*args, **named)
        allocates, written = role
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            # A rehearsal has no values, and some parameters are made on the device whatever is asked for.
            args[1].expand(args[0].shape)
            result = args[0]
        else:
            result = func(*args, **named)
        if allocates:
            if (at := place(result)) is not None:
                self.storages[at[0]] = Storage(_weak(result), raw=True)
        elif written and not self._copies_nothing(func, args):
            for number, name in written:
                given = args[number] if number < len(args) else named.get(name)
                for tensor in given if isinstance(given, list | tuple) else (given,):
                    if isinstance(tensor, torch.Tensor) and (found := self.of(tensor)) is not None:
                        found[0].regions[found[1]] = None if self.given is None else self.given.name
            if func in _COPIES and self.given is not None:
                self._compare(args[0], args[1], self.given.name)
        return result

    def _note_reads(self, func: Any, args: Sequence[Any], named: Mapping[str, Any], given: Given) -> None:
        """A copy reads what it is given, a view nothing, and of any other operation it is not known."""
        if given.at is None:
            return
        if (view := self._views.get(func)) is None:
            returns = func._schema.returns
            view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
            self._views[func] = view
        if view:
            return
        storage, whole = given.at
        for tensor in tree_iter((args, named)):
            if isinstance(tensor, torch.Tensor) and (at := place(tensor)) is not None and at[0] == storage:
                given.read.add(at[1] if func in _COPIES else whole)

    def _compare(self, target: torch.Tensor, source: torch.Tensor, writer: str) -> None:
        """Note a copy that does not give the target what the source has."""
        repeated = source.numel() < target.numel()
        exact = _keeps_numbers(source, target)
        if (repeated or not exact) and (found := self.of(target)) is not None:
            copy = Copy(source.dtype, target.dtype, exact, source.numel())
            found[0].doubtful.setdefault(writer, copy)

    def _copies_nothing(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether this copies what nobody has written (offloading moves empty parameters)."""
        if func is not torch.ops.aten.copy_.default or not isinstance(args[1], torch.Tensor):
            return False
        source = self.of(args[1])
        return source is not None and source[0].raw and not source[0].regions
