"""What a decoding step of a server reads, and how fast its memory is: figures for `/metrics`.

`gb10 serve` makes them once, out of the checkpoint's headers (`gb10.audit`), and vLLM's process adds what its
platform calls the GPU.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gb10.audit.model import STATE, bytes_per_token
from gb10.audit.reading import read_model
from gb10.checkpoint import size
from gb10.doctor import devices
from gb10.errors import UserError
from gb10.routing import CPU_MODE_VARIABLE, CPU_MODES

if TYPE_CHECKING:
    # The engine process reads this module as well, and has no use for that.
    from gb10.serve.command import Plan


def figures(plan: "Plan") -> dict[str, Any]:
    """Bytes that one sequence's token reads, as JSON can carry it.

    ``weights`` are bytes by component, ``state`` those of a sequence's recurrent states (read and written),
    ``kv`` those of a token of context in the KV cache. Where they are not known, ``missing`` says why, and
    nothing stops the server. ``ranks`` is how many GPUs read at the same time; ``rate`` what the user says
    that one reads, in bytes a second.
    """
    settings = plan.settings
    found: dict[str, Any] = {"ranks": settings.tensor_parallel_size or 1}
    if settings.read_bandwidth is not None:
        found["rate"] = settings.read_bandwidth * 1e9
    try:
        return found | _reads(plan)
    except (UserError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        return found | {"missing": " ".join(str(error).split()) or type(error).__name__}


def _reads(plan: "Plan") -> dict[str, Any]:
    target = plan.target
    if target.capability is None and target.cpu_mode == CPU_MODES[0]:
        raise UserError(
            f"with {CPU_MODE_VARIABLE}={CPU_MODES[0]} the CPU engine does not read the checkpoint's weights"
        )
    model = read_model(plan.checkpoint, plan.formats)
    cache = size.cache_shape(plan.checkpoint.config, max(target.kv_bits // 8, 1))
    model = replace(model, cache=cache).requantised(str(target.dense), str(target.head))
    parts = dict(bytes_per_token(model).parts)
    state = parts.pop(STATE, 0)
    return {"weights": parts, "state": state, "kv": cache.per_token}


def of_device(found: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """``found`` (`figures`) with ``device``: its name, and the bytes a second that all its ranks read.

    ``name`` is the GPU's, None for the CPU. Without a rate of the user's that is what `gb10.doctor.devices`
    has for it; there is no ``device`` where that has none.
    """
    known = devices.of(name) if name else None
    rate = found.get("rate") or (known.rate if known else None)
    if rate is None:
        return dict(found)
    source = "GB10_READ_BANDWIDTH" if "rate" in found else "gb10"
    told = {"name": name or "CPU", "source": source, "rate": rate * int(found.get("ranks", 1))}
    return {**found, "device": told}
