"""The process that becomes vLLM's API server: ``python -m gb10.serve.engine ARGUMENTS``.

It is started by `gb10 serve` and does two things before vLLM's own entry point runs.

1. It asks the kernel to end it when `gb10 serve` dies, so that even SIGKILL leaves no server behind.
2. On the CPU, where `gb10 serve` asked for fork, it keeps vLLM from going back to spawn. Forked, the
   engine and its worker share the modules that are already loaded; spawned, each of the three
   processes imports torch and vLLM again (12 s each). The OpenMP settings that vLLM gives to a spawned
   worker are in our environment already (see `gb10.serve.command`).
"""

import ctypes
import gc
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def _die_with(parent: int) -> None:
    """Get SIGTERM when the parent dies. ``parent`` is its pid, 0 to skip."""
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Prepare this process and run vLLM's API server with our own arguments; does not return normally."""
    _die_with(int(os.environ.pop("GB10_SERVE_PARENT", "0")))
    # The collector walks the growing heap again and again while modules load: 1.5 s of 12 s.
    gc.disable()
    if os.environ.get(_START_METHOD) == "fork":
        from gb10.vllm_plugin import patches

        patches.apply("serve")
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    gc.enable()
    serve()


if __name__ == "__main__":
    main()
