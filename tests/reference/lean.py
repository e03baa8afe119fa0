"""What a process that runs many of vLLM's engines need not do anew for each of them.

vLLM thaws what it froze and collects garbage three times at the end of an engine, over all that was ever
imported: a second and more, where an engine of the tests takes three. And each engine goes through all names
of all modules to put the CPU's functions in the place of Triton's kernels, which are there after the first.
"""

from __future__ import annotations

import functools
import gc

freeze = gc.freeze
"""What is there now is looked at no more."""


def _nothing() -> None:
    """Instead of `gc.freeze` and `gc.unfreeze`: what an engine made must be collected when it ends."""


def install() -> None:
    """Before the first engine."""
    gc.disable()
    import vllm
    from vllm.platforms import current_platform

    _ = vllm.LLM

    platform = type(current_platform)
    once = functools.cache(current_platform.register_triton_kernel_overrides)
    setattr(platform, "register_triton_kernel_overrides", staticmethod(once))  # noqa: B010 (mypy)
    for name in ("freeze", "unfreeze"):
        setattr(gc, name, _nothing)
    freeze()
    gc.enable()
