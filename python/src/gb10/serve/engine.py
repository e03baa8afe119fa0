"""The process that becomes vLLM's API server: ``python -P -m gb10.serve.engine``.

It is started by `gb10 serve`, which asks it a few things over a socket (`gb10.serve.preflight`) and then
lets it serve. Without the socket, called by hand, it serves its own arguments. Before it imports vLLM:

1. It lets vLLM's processes die together (`gb10.vllm_plugin.lifeline`).
2. Where `gb10 serve` asked for fork, the engine and its worker share the modules that are already loaded;
   spawned, each process imports torch and vLLM again (12 s each). On the CPU it keeps vLLM from going back
   to spawn: the OpenMP settings that vLLM gives to a spawned worker are in our environment already (see
   `gb10.serve.command`). On a GPU it keeps this process without a CUDA context.
"""

import gc
import importlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gb10.checkpoint import headers
from gb10.errors import UserError
from gb10.serve import apart
from gb10.serve.preflight import REPORTERS, SOCKET_VARIABLE, Line
from gb10.serve.ray import Start
from gb10.vllm_plugin import lifeline

if TYPE_CHECKING:
    from gb10.serve.launch import Prepared

_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def _reports(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """What each reporter says of a checkpoint, as `gb10.serve.run` describes it; nothing without one."""
    if described is None:
        return {}
    from gb10.checkpoint.folder import Checkpoint, inspect

    name = described["name"]
    if "folder" in described:
        folder = Path(described["folder"])
        read = {key: described[key] for key in ("weights", "load_format")}
        checkpoint = inspect(folder, name, **read, tokenizer=False)
    else:
        checkpoint = Checkpoint(name, config=described["config"])
    checkpoint = replace(checkpoint, quantization=described["quantization"])
    reports = {}
    for name, place in REPORTERS.items():
        module, _, function = place.partition(":")
        reports[name] = getattr(importlib.import_module(module), function)(checkpoint)
    return reports


def _on_cuda() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda())


def looked_at(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """`_reports`; on a GPU by another process, since importing a model there makes a CUDA context.

    With one here vLLM would spawn its engine, which imports all anew; and it is memory that this process
    has no use for.
    """
    if described is not None and _on_cuda():
        return dict(apart.ask(lambda: _reports(described)))
    return _reports(described)


def _answer(question: Mapping[str, Any], state: dict[str, "Prepared"]) -> dict[str, Any]:
    from gb10.serve import launch

    if question["ask"] == "facts":
        known, several = launch.options()
        config = question["config"]
        return {
            "options": known,
            "several": several,
            "config": launch.config_file(config) if config else [],
            "reports": looked_at(question["checkpoint"]),
        }
    state["judged"] = launch.prepare(question["arguments"], configure=question["configure"])
    return vars(state["judged"].verdict())


def _ray(question: Mapping[str, Any]) -> Start | None:
    return None if question["ray"] is None else Start(**question["ray"])


def _converse(line: Line) -> None:
    """Answer until the order to serve comes; end when the other side is gone."""
    from gb10.serve import launch

    state: dict[str, Prepared] = {}
    while (question := line.receive()) is not None:
        if question["ask"] == "join":
            line.close()
            headers.forget()
            gc.enable()
            launch.join(state["judged"], planned=question["planned"], start=_ray(question))
            return
        if question["ask"] == "serve":
            from gb10.serve import listen

            line.close()
            for listener in line.sockets:
                listen.hand_over(listener)
            headers.forget()
            gc.enable()
            more = {name: question[name] for name in ("metrics", "planned")}
            launch.serve(state["judged"], question["keys"], **more, start=_ray(question))
            return
        try:
            answer = _answer(question, state)
        except UserError as error:
            answer = {"error": str(error)}
        line.send(answer)


def main() -> None:
    """Prepare this process, answer what is asked, and run vLLM's API server."""
    lifeline.install()
    # The collector walks the growing heap again and again while modules load: 1.5 s of 12 s.
    gc.disable()
    if os.environ.get(_START_METHOD) == "fork":
        from gb10.vllm_plugin import patches

        patches.apply("serve")
    number = os.environ.pop(SOCKET_VARIABLE, None)
    if number is not None:
        _converse(Line(socket.socket(fileno=int(number))))
        return
    from gb10.serve import launch

    try:
        prepared = launch.prepare(sys.argv[1:], configure=True)
    except UserError as error:
        print(f"gb10: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    gc.enable()
    key = os.environ.pop("VLLM_API_KEY", "")
    launch.serve(prepared, prepared.arguments.api_key or ([key] if key else []), metrics=False, planned={})


if __name__ == "__main__":
    main()
