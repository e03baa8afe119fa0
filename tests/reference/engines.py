"""Runs vLLM's engines on token ids, in a process of their own (serve_tokens.py)."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parents[1]


def serve_tokens(job: Any, answer: Path, variables: Mapping[str, str], limit: float = 300) -> Any:
    """What serve_tokens.py answers to ``job``, a job or a list of jobs. It goes through the file ``answer``.

    ``variables`` are added to this process's. ``limit`` is in seconds.
    """
    done = subprocess.run(
        [sys.executable, "-m", "reference.serve_tokens", str(answer)],
        input=json.dumps(job),
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        | dict(variables)
        | {"PYTHONPATH": os.pathsep.join((str(_TESTS), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    # pytest shows it when a test fails: what vLLM chose is in there.
    print(done.stdout[-6000:])
    assert done.returncode == 0, f"the engine failed ({dict(variables)})\n{done.stderr[-4000:]}"
    return json.loads(answer.read_text(encoding="utf-8"))
