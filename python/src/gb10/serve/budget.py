"""Memory: what a model needs, what vLLM may have, and whether that is enough; the one place to compute that.

All sizes are bytes. vLLM asks for a share of all memory (``--gpu-memory-utilization``) and takes for the KV
cache what the weights and its own work leave of it. It ends when the share is more than is free
(request_memory in vllm/v1/worker/utils.py), and, minutes later, when nothing is left for the cache. Both can
be known before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from gb10 import routing
from gb10.checkpoint import size
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.headers import Tensor
from gb10.errors import UserError
from gb10.machine import memory
from gb10.machine.gpu import Gpu
from gb10.machine.watch import SHED, STOP, Limits
from gb10.serve.settings import Origin, Settings
from gb10.units import GIB, MIB, parse_whole, text_size

UNIFIED_MEMORY_SHARE = 0.80
"""Where GPU and CPU share memory, vLLM gets this share, or what is free where that is less, or what the model
needs where that is more. vLLM's own 0.92 leaves a GB10 host too little: it wedges instead of killing a
process (vllm #56824, open-gpu-kernel-modules #1358)."""

VLLM_SHARE = 0.92
"""vLLM's default."""

CONTEXT = GIB
"""What CUDA and NCCL take of a GPU with memory of its own before vLLM looks at what is free; less, mostly."""

LEAST_CONTEXT = 4096
"""Where the whole context does not fit and nobody asked for it, vLLM shortens it, but not below this."""

CPU_SEQUENCES = 32
"""Sequences that the default KV cache of the CPU engine has room for."""

CONVERSION = 256 * MIB
"""What a matrix's conversion takes beside it and the result (tests/gpu/test_requant.py holds it to that)."""

_PROCESSES = 3 * GIB
"""What vLLM's processes take of unified memory before it looks at what is free."""

_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"
_PLAIN_CACHES = (None, "auto", "bfloat16", "float16", "half")
"""Values of ``--kv-cache-dtype`` whose sizes are known here; an FP8 one is seen by its route."""

_AS_THEY_ARE: Mapping[Tensor, str] = MappingProxyType({})
_SHARE_DIGITS = 1000
_SHARE_FIELD = "gpu_memory_utilization"


def host_reserve(total: int) -> int:
    """What vLLM must leave of all memory: a twentieth, at least 1 GiB. On a GB10 that is 6 GiB.

    It holds what the processes of vLLM take before it looks at what is free, and the system.
    """
    return max(total // 20, GIB)


@dataclass(frozen=True)
class Need:
    """What a start needs: the weights, the least KV cache that it can work with, and vLLM's own work.

    That is its processes, activations and CUDA graphs. ``layer``: what the conversion of a layer takes beside
    the result; that is over before the cache is made, so the larger of the two counts.
    """

    weights: int
    cache: int
    work: int
    layer: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + max(self.cache, self.layer) + self.work

    def __str__(self) -> str:
        peak = ("a layer in 16 bit while it is requantised", self.layer)
        parts = (
            ("weights", self.weights),
            peak if self.layer > self.cache else ("KV cache", self.cache),
            ("vLLM", self.work),
        )
        return ", ".join(f"{name} {text_size(part)}" for name, part in parts)


def _element(settings: Settings) -> int:
    """Size of a value of the model's type."""
    return 4 if settings.dtype in ("float32", "float") else 2


def _shape(
    settings: Settings, checkpoint: Checkpoint, target: routing.Target, ranks: int = 1
) -> size.CacheShape:
    """The model's cache. Types of less than a byte count as one."""
    return size.cache_shape(checkpoint.config, max(target.kv_bits // 8, 1), ranks)


def _check_context(settings: Settings, shape: size.CacheShape, tokens: int, cache: int) -> None:
    """Refuse a KV cache of the user's that cannot hold one sequence of ``tokens`` tokens; vLLM would."""
    if shape.per_token * tokens > cache and settings.kv_cache_dtype in _PLAIN_CACHES:
        by_variable = settings.environment.get(_CACHE_SPACE)
        said = _CACHE_SPACE if by_variable else settings.said("kv_cache_memory_bytes")
        raise UserError(
            f"{said}: a KV cache of {text_size(cache)} holds {cache // shape.per_token} tokens, and the "
            f"context of {tokens} takes {text_size(shape.per_token * tokens)}; give more, or a shorter one"
        )


def _layer(forms: Mapping[Tensor, str], ranks: int) -> int:
    """What the requantisation of the largest layer takes beside its result: its matrices in 16 bit, and work.

    A layer of vLLM may hold several matrices of a module (q, k and v); all of a module's are more than that.
    """
    modules: dict[str, int] = {}
    for tensor in forms:
        module = tensor.name.rpartition(".")[0].rpartition(".")[0]
        modules[module] = modules.get(module, 0) + 2 * math.prod(tensor.shape) // ranks
    return max(modules.values()) + CONVERSION if modules else 0


def _weights(
    settings: Settings, checkpoint: Checkpoint, mode: str | None, forms: Mapping[Tensor, str] = _AS_THEY_ARE
) -> int:
    """Bytes of the weights, 0 where they are not known; ``forms``: `routing.requantised`."""
    if settings.load_format == "dummy":
        return 0
    return size.weight_bytes(checkpoint.tensors, mode, _element(settings), forms)


def _number(settings: Settings, option: str) -> float:
    """The number that an option of vLLM has, 0 where it has none that can be read."""
    try:
        return float(settings.passed_on.value(option) or 0)
    except ValueError:
        return 0


def _given_cache(settings: Settings) -> int | None:
    """The size of the KV cache that the user gave, None for none. Raises UserError if it is malformed."""
    text = settings.environment.get(_CACHE_SPACE, "")
    if not text:
        return settings.kv_cache_memory_bytes
    try:
        given = parse_whole(text)
    except ValueError:
        given = 0
    if given == 0:
        raise UserError(f"{_CACHE_SPACE} {text!r} is not a whole number above 0 (GiB)")
    # vLLM's CPU platform lets the variable win.
    return given * GIB


@dataclass(frozen=True)
class Room:
    """What vLLM may have, and the words for where that comes from."""

    size: int
    words: str


def _refusal(name: str, need: Need, room: Room, remedies: Sequence[str]) -> UserError:
    return UserError(
        f"not enough memory: {name} needs about {text_size(need.total)} ({need}) and {room.words}; "
        f"{', or '.join(remedies)}"
    )


def _less_context(settings: Settings, checkpoint: Checkpoint) -> list[str]:
    """The remedy for a context that the user asked for and the model does not have; else none."""
    asked, most = settings.max_model_len, checkpoint.max_tokens
    if not isinstance(asked, int) or most is None or asked <= most:
        return []
    said = settings.said("max_model_len")
    return [f"{said} {asked} is more than the {most} tokens of its config.json: give less"]


def _note(need: Need, room: Room) -> str:
    return f"memory  needs {text_size(need.total)} of {text_size(room.size)}: {need}"


def _share(part: float, total: int, rounded: Callable[[float], int] = math.floor) -> float:
    """``part`` as a share of ``total``: rounded down it fits, rounded up it holds."""
    return rounded(max(part, 0) * _SHARE_DIGITS / total) / _SHARE_DIGITS


def _check_levels(settings: Settings, free: memory.Available, total: int, taken: int, what: str) -> None:
    """Refuse a level of the user's (GB10_MEMORY_SHED, GB10_MEMORY_STOP) that cannot hold here.

    Beside ``taken`` bytes, of ``what``, a server would start and take no request. Where the default levels do
    not hold either, the level is not at fault. Raises UserError.
    """
    limits, name = settings.limits, settings.level
    left = free.size - taken
    if name is None or limits.kept(total) <= left or Limits().kept(total) > left:
        return
    most = left * 8 // 9 // MIB  # `Limits.calm` asks for an eighth more than the level
    raise UserError(
        f"{name} {text_size(max(limits.shed(total), limits.stop(total)))} does not fit: a server that takes "
        f"requests keeps {text_size(limits.kept(total))} free, and {text_size(free.size)} is free "
        f"({free.limit}), of which {what} will take {text_size(taken)}; set {name} to at most {most}M, or "
        "free memory"
    )


def _less_level(settings: Settings) -> list[str]:
    """The remedy for a level of free memory that the user gave; else none."""
    return [] if settings.level is None else [f"give {settings.level} less"]


def _asked(
    settings: Settings,
    share: float,
    total: int,
    free: memory.Available,
    reserve: int,
    kept: Room | None = None,
) -> Room:
    """What vLLM asks for with the user's share of ``total``. Raises UserError when that is not free.

    ``reserve`` is what will not be free any more when vLLM looks; with less than ``kept`` left, the watch
    (`gb10.machine.watch`) would end the server.
    """
    kept = kept or Room(0, "")
    asked, said = math.ceil(total * share), settings.said(_SHARE_FIELD)
    if asked > free.size - kept.size:
        why = f", {text_size(kept.size)} of it for {kept.words}" if asked <= free.size else ""
        most = _share(free.size - reserve, total)
        raise UserError(
            f"not enough memory: {said} {share:g} of {text_size(total)} is {text_size(asked)}, and "
            f"{text_size(free.size)} is free ({free.limit}){why}; "
            f"{f'give at most {most:g}, or ' if most else ''}free memory"
        )
    return Room(asked, f"{said} {share:g} of {text_size(total)} is {text_size(asked)}")


def _free_words(free: memory.Available, limits: Limits) -> str:
    """What is free, and what stays so, since a server with less may take no requests, or end."""
    kept = limits.kept(free.total)
    why = f"an eighth more than {SHED}" if limits.shed(free.total) else STOP
    stays = f", {text_size(min(kept, free.size))} of it stays so ({why})" if kept else ""
    return f"{text_size(free.size)} is free ({free.limit}){stays}"


def _sequences(settings: Settings, shape: size.CacheShape, tokens: int, cache: int) -> list[str]:
    """A note where a cache has no room for as many sequences of ``tokens`` tokens as the user asked for."""
    asked, one = settings.max_num_seqs, shape.sequence(tokens)
    if asked is None or settings.origins["max_num_seqs"] <= Origin.MACHINE or one * asked <= cache:
        return []
    return [
        f"memory  the KV cache holds {cache // one} sequences of {tokens} tokens, "
        f"{settings.said('max_num_seqs')} {asked} would take {text_size(one * asked)}: the others wait"
    ]


def _sizes_nothing(settings: Settings, then: str) -> list[str]:
    """A note where a given size of the KV cache takes the place of a share that the user gave."""
    cache = _CACHE_SPACE if settings.environment.get(_CACHE_SPACE) else settings.said("kv_cache_memory_bytes")
    share = settings.gpu_memory_utilization
    if share is None or settings.origins[_SHARE_FIELD] <= Origin.MACHINE or _given_cache(settings) is None:
        return []
    said = settings.said(_SHARE_FIELD)
    return [f"memory  {said} {share:g} does not size the KV cache, since {cache} does; vLLM {then}"]


def on_cpu(
    settings: Settings, checkpoint: Checkpoint, target: routing.Target, tokens: int, free: memory.Available
) -> list[str]:
    """Settle the KV cache of the CPU engine for contexts of ``tokens`` tokens; a note on what is needed.

    Raises UserError when it cannot fit. A share that the user gave is of all memory, as vLLM takes it.
    """
    shape, mode = _shape(settings, checkpoint, target), target.cpu_mode
    weights = _weights(settings, checkpoint, mode) // (settings.nnodes or 1)
    cache, share = _given_cache(settings), settings.gpu_memory_utilization
    if cache is not None:
        _check_context(settings, shape, tokens, cache)
    kept = settings.limits.kept(free.total)
    room = Room(free.size - kept, _free_words(free, settings.limits))
    if cache is None and share is not None:
        total = memory.total()
        _check_levels(settings, free, free.total, math.ceil(total * share), settings.said(_SHARE_FIELD))
        room = _asked(
            settings, share, total, free, host_reserve(total), Room(settings.limits.stop(free.total), STOP)
        )
        cache = size.kv_cache_bytes(shape, tokens, 1, 0)
    elif cache is None:
        sequences = min(settings.max_num_seqs or CPU_SEQUENCES, CPU_SEQUENCES)
        left = free.size - kept - weights - size.OVERHEAD
        cache = size.kv_cache_bytes(shape, tokens, sequences, free.size, left)
        settings.settle(Origin.MACHINE, kv_cache_memory_bytes=cache)
    need = Need(weights, cache, size.OVERHEAD)
    if need.total > room.size:
        _check_levels(settings, free, free.total, need.total, checkpoint.name)
        remedies = [*_less_context(settings, checkpoint), "use a smaller model", "free memory"]
        remedies += _less_level(settings)
        packed = replace(need, weights=_weights(settings, checkpoint, "packed") // (settings.nnodes or 1))
        if mode == "dequant" and packed.weights < weights and packed.total <= room.size:
            remedies = [f"set {routing.CPU_MODE_VARIABLE}=packed to keep the weights at 4 bit", remedies[0]]
        raise _refusal(checkpoint.name, need, room, remedies)
    held = cache if _given_cache(settings) is not None else room.size - weights - size.OVERHEAD
    notes = [
        *_sequences(settings, shape, tokens, held),
        *_sizes_nothing(settings, "does not look at it"),
    ]
    return [*notes, _note(need, room)] if weights else notes


def on_gpu(
    settings: Settings,
    checkpoint: Checkpoint,
    target: routing.Target,
    gpus: Sequence[Gpu],
    free: memory.Available,
) -> list[str]:
    """Settle vLLM's share of the GPU's memory, and the context where the model's own cannot fit; notes on it.

    Raises UserError for what cannot fit.
    """
    ranks = settings.ranks
    shape = _shape(settings, checkpoint, target, ranks)
    forms = routing.requantised(checkpoint, target, _element(settings))
    weights = _weights(settings, checkpoint, None, forms) // ranks
    asked, longest, cache = settings.max_model_len, checkpoint.max_tokens or 0, settings.kv_cache_memory_bytes
    # The whole context, and a quarter for what these figures do not know.
    whole = shape.sequence(asked if isinstance(asked, int) else longest) * 5 // 4 if cache is None else cache
    least = asked if isinstance(asked, int) else min(longest, LEAST_CONTEXT)
    need = Need(
        weights,
        shape.sequence(least) if cache is None else cache,
        size.OVERHEAD,
        0 if settings.load_format == "dummy" else _layer(forms, ranks),
    )
    if cache is not None and isinstance(asked, int):
        _check_context(settings, shape, asked, cache)
    if gpus[0].unified:
        total, share = gpus[0].memory or memory.total(), settings.gpu_memory_utilization
        taken = math.ceil(total * (_share(need.total, total, math.ceil) if share is None else share))
        what = checkpoint.name if share is None else settings.said(_SHARE_FIELD)
        _check_levels(settings, free, total, _PROCESSES + taken, f"{what} with vLLM's processes")
        offer = _unified(settings, gpus[0], free, need, whole)
    else:
        # Offloaded weights lie in the machine's memory, and so do vLLM's processes.
        offloaded = int(_number(settings, "--cpu-offload-gb") * GIB)
        need = replace(need, weights=max(weights - offloaded, 0), work=size.OVERHEAD // 2)
        _check_levels(settings, free, free.total, _PROCESSES, "vLLM's processes")
        offer = _own_memory(settings, gpus[: settings.local_ranks])
    left = offer.room.size - need.weights - need.work
    fits = shape.tokens(left)
    if need.total > offer.room.size:
        remedies = [*_less_context(settings, checkpoint), *offer.remedies]
        shorter = isinstance(asked, int) and cache is None and LEAST_CONTEXT <= fits < asked
        if shorter and need.layer <= left:
            remedies = [f"{settings.said('max_model_len')} {fits} would fit", *remedies]
        raise _refusal(checkpoint.name, need, offer.room, remedies)
    notes = [*offer.notes, *_sizes_nothing(settings, "compares it with what is free, no more")]
    if asked is None and (whole > left or (cache is not None and shape.sequence(longest) > cache)):
        left = left if cache is None else cache
        fits = shape.tokens(left)
        settings.settle(Origin.MACHINE, max_model_len="auto")
        notes.append(
            f"context what fits of the model's {longest} tokens, about {min(fits, longest)}: "
            f"{text_size(left)} is left for the KV cache (--max-model-len N)"
        )
    held, tokens = left if cache is None else cache, asked if isinstance(asked, int) else min(fits, longest)
    notes += _sequences(settings, shape, tokens, held) if weights else []
    return [*notes, _note(need, offer.room)] if weights else notes


@dataclass(frozen=True)
class _Offer:
    """What vLLM may have of a GPU, notes on that, and what to do where it is too little."""

    room: Room
    notes: Sequence[str]
    remedies: Sequence[str]


def _unified(settings: Settings, gpu: Gpu, free: memory.Available, need: Need, whole: int) -> _Offer:
    """The share of memory that the CPU uses as well; ``whole`` is the KV cache that holds the context."""
    total = gpu.memory or memory.total()
    reserve = max(host_reserve(total), _PROCESSES + settings.limits.kept(total))
    most = _share(free.size - reserve, total)
    share, said = settings.gpu_memory_utilization, settings.said(_SHARE_FIELD)
    remedies = ["use a smaller model", "free memory", *_less_level(settings)]
    if share is None:
        wanted = _share(need.weights + need.work + max(whole, need.layer), total, math.ceil)
        share = min(max(UNIFIED_MEMORY_SHARE, wanted), most)
        settings.settle(Origin.MACHINE, gpu_memory_utilization=share or None)
        room = int(total * share)
        words = (
            f"{text_size(room)} of {text_size(total)} unified memory can be had: {text_size(free.size)} is "
            f"free ({free.limit}), {text_size(reserve)} stays for the host"
        )
        return _Offer(Room(room, words), [f"memory  {said} {share:g}: {words} (GPU_MEMORY_UTIL)"], remedies)
    stop = settings.limits.stop(total)
    kept = Room(_PROCESSES + stop, f"vLLM's processes and {STOP}") if stop else None
    given = _asked(settings, share, total, free, reserve, kept)
    enough = _share(need.total, total, math.ceil)
    if given.size < need.total and enough <= most:
        remedies.insert(0, f"give at least {enough:g}")
    notes = [
        f"memory  {given.words}: all that vLLM takes on the GPU, weights, KV cache and work, out of the "
        f"memory that the CPU uses too; {text_size(free.size)} of that is free ({free.limit})"
    ]
    if share > most:
        notes.append(
            f"memory  {given.words}, which leaves {text_size(free.size - given.size)} for the host; a "
            f"machine with unified memory may wedge without {text_size(reserve)}, and with less than "
            f"{text_size(settings.limits.shed(total))} requests get 503 ({SHED})"
        )
    return _Offer(given, notes, remedies)


def _own_memory(settings: Settings, gpus: Sequence[Gpu]) -> _Offer:
    """The share of a GPU's own memory: vLLM's, or what is free on the fullest of ``gpus``, if known."""
    share, said = settings.gpu_memory_utilization, settings.said(_SHARE_FIELD)
    total = gpus[0].memory
    remedies = ["use a smaller model", "more GPUs with --tensor-parallel-size N"]
    known = [gpu.free for gpu in gpus if gpu.free is not None]
    free = memory.Available(min(known, default=total), gpus[0].name)
    if share is not None:
        return _Offer(_asked(settings, share, total, free, CONTEXT), [], remedies)
    share, notes = VLLM_SHARE, []
    if known and _share(free.size - CONTEXT, total) < share:
        share = _share(free.size - CONTEXT, total)
        settings.settle(Origin.MACHINE, gpu_memory_utilization=share or None)
        notes = [
            f"memory  {said} {share:g}: of {text_size(total)} {text_size(free.size)} is free ({free.limit}) "
            "(GPU_MEMORY_UTIL)"
        ]
    room = int(total * share)
    return _Offer(Room(room, f"{said} {share:g} of {free.limit} is {text_size(room)}"), notes, remedies)
