"""Runs vLLM's engines on token ids (serve_tokens.py), each time in a fork of one process that imported vLLM.

An import of vLLM takes longer than a small engine on the CPU. The process has imported vLLM and done nothing
else: no plug-in is loaded, no thread runs, torch computed nothing. What a job changes ends with its fork.

As a program it reads requests from standard input, one JSON object a line: {"job", "answer", "variables"}. It
writes the exit status of each job, one a line. What a job prints goes to files beside the answer.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference import engines

if __name__ in ("__main__", "__mp_main__"):
    # As a program, and in what vLLM starts afresh from it: until all is imported (tests/conftest.py).
    gc.disable()

FIXED = engines.OFFLINE | {"OMP_NUM_THREADS": "1"}
"""Variables that libraries read when they are loaded: no job can have others."""


class _Server:
    """The process that jobs are forked from. It ends with its standard input."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reference.forked"],
            env=engines.environment(FIXED),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.end)

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End it and whatever a job left."""
        if self.alive():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def run(self, request: dict[str, Any], limit: float) -> int:
        """The exit status of a job."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], limit)[0]:
            self.end()
            raise TimeoutError(f"the engines did not answer in {limit:.0f} s")
        said = stdout.readline()
        assert said, "the process that jobs are forked from ended"
        return int(said)


_server: _Server | None = None


def serve_tokens(job: Any, answer: Path, variables: Mapping[str, str], limit: float = 300) -> Any:
    """What serve_tokens.py answers to ``job``, a job or a list of jobs. It goes through the file ``answer``.

    ``variables`` are added to this process's. ``limit`` is in seconds.
    """
    global _server
    wrong = {name for name, value in FIXED.items() if variables.get(name, value) != value}
    assert not wrong, f"{wrong} cannot be set in a fork: use reference.engines"
    if _server is None or not _server.alive():
        _server = _Server()
    given = engines.environment(dict(variables) | FIXED)
    status = _server.run({"job": job, "answer": str(answer), "variables": given}, limit)
    # pytest shows it when a test fails: what vLLM chose is in there.
    print(_printed(answer, "out")[-6000:])
    assert status == 0, f"the engine failed ({dict(variables)})\n{_printed(answer, 'err')[-4000:]}"
    return json.loads(answer.read_text(encoding="utf-8"))


def _printed(answer: Path, stream: str) -> str:
    return answer.with_suffix(f".{stream}").read_text(encoding="utf-8", errors="replace")


def _child(request: dict[str, Any], inherited: set[str]) -> int:
    """Run one job in this process, with its variables and no other of those that were there."""
    answer = Path(request["answer"])
    for number, stream in ((1, "out"), (2, "err")):
        file = os.open(answer.with_suffix(f".{stream}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name in inherited - request["variables"].keys():
        os.environ.pop(name, None)
    os.environ.update(request["variables"])

    from vllm.model_executor.models import registry

    from reference import serve_tokens as program

    # vLLM asks a new process about each model, so that this one does not start CUDA: there is none.
    registry._run_in_subprocess = lambda ask: ask()
    try:
        program.run(request["job"], answer)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    inherited = set(os.environ)
    # vLLM prints; the statuses have the pipe for themselves.
    statuses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from reference import serve_tokens  # noqa: F401  sets variables that vLLM reads

    import vllm  # isort: skip

    _ = vllm.LLM, vllm.SamplingParams
    gc.freeze()
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads: a fork would have one of them"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _child(json.loads(line), inherited)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=statuses, flush=True)


if __name__ == "__main__":
    main()
