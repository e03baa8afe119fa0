"""Processes with vLLM for what a process may do once: one imports vLLM, each test is a fork of it."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[2]
"""What a test's code imports `reference` from."""

_SERVER = """
import json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
import torch
import gb10.vllm_plugin as plugin
import vllm.envs
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.kernels import linear
from vllm.model_executor.layers.quantization import get_quantization_config, modelopt
from vllm.model_executor.models.qwen3_next_mtp import Qwen3NextMTP
from vllm.platforms import current_platform
from vllm.platforms.interface import PlatformEnum
import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle

def run(code, environment):
    os.environ.clear()
    os.environ.update(environment)
    out, into_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for number in (1, 2):
                os.dup2(into_out, number)
            exec(compile(code, "test", "exec"), globals())
            status = 0
        except SystemExit as error:
            print(error, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(into_out)
    with os.fdopen(out, errors="replace") as read:
        said = read.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    answers.write(json.dumps(run(*json.loads(line))) + "\\n")
    answers.flush()
"""


@cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(_TESTS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.kill)
    return process


def python(code: str, **environment: str) -> tuple[int, str]:
    """Run ``code`` in a process of its own, where the names that _SERVER imports are known.

    Returns its exit status and all that it printed. ``environment`` is added to this process's. vLLM is
    imported before these variables are set: one that it reads while it is imported has no effect here.
    """
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([code, os.environ | environment]) + "\n")
    server.stdin.flush()
    for line in server.stdout:
        # vLLM's own lines while it is imported are not JSON lists.
        if line.startswith("["):
            try:
                status, said = json.loads(line)
            except ValueError:
                continue
            return int(status), str(said)
    raise AssertionError(f"the process with vLLM ended with {server.wait()}")
