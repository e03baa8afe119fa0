"""What nix/image/advisories.toml says, tried on the wheels of the lock. Each test has its control."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import starlette.requests
import vllm
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.dynamic_module import try_get_class_from_dynamic_module

from gb10.serve.guard import Guard, arm

BAD_HOST = b"localhost/health?"
"""A Host header that carries a path: put before the path that was asked for, it hides that one."""


@pytest.mark.parametrize("trusted", [False, True])
def test_a_checkpoints_python_files_are_run_only_where_trusted(tmp_path: Path, trusted: bool) -> None:
    """CVE-2026-22807."""
    mark = tmp_path / "ran"
    model = tmp_path / "model"
    model.mkdir()
    (model / "hostile.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Config: pass\n")
    (model / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "hostile.Config"}}))
    found = try_get_class_from_dynamic_module("hostile.Config", str(model), trusted, warn_on_fail=False)
    assert mark.exists() is trusted
    assert (found is not None) is trusted


def _trusting(source: str) -> list[int]:
    """Lines of calls that set trust_remote_code themselves."""
    return [
        call.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is True
    ]


def test_no_call_trusts_by_itself() -> None:
    """CVE-2026-27893."""
    assert _trusting("f(1)\ng(trust_remote_code=True, x=2)\nh(trust_remote_code=a)\n") == [2]
    root = Path(str(vllm.__file__)).parent
    files = sorted(root.rglob("*.py"))
    assert {"nemotron_vl.py", "kimi_k25.py"} <= {file.name for file in files if file.parent.name == "models"}
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    candidates = {
        file: text for file, text in texts.items() if re.search(r"trust_remote_code\s*=\s*True", text)
    }
    assert candidates, "a message or a comment says it, so a search that finds none is wrong"
    found = {
        str(file.relative_to(root)): lines for file, text in candidates.items() if (lines := _trusting(text))
    }
    assert found == {}


def test_the_number_of_answers_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-34756."""
    assert SamplingParams(n=16384, temperature=1.0).n == 16384
    with pytest.raises((VLLMValidationError, ValueError), match="must be at most 16384"):
        SamplingParams(n=16385, temperature=1.0)
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "16385")
    assert SamplingParams(n=16385, temperature=1.0).n == 16385


def _vllms(application: Any) -> Any:
    return AuthenticationMiddleware(application, ["secret"])


def _ours(application: Any) -> Any:
    arm(["secret"], metrics=False, cross_origin=False)
    return Guard(application)


def _status(guarded: Callable[[Any], Any], path: str, host: bytes, key: str | None) -> int:
    """What a server with the key ``secret`` answers."""
    sent: list[dict[str, Any]] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    headers = [(b"host", host)]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": headers}

    async def run() -> None:
        await guarded(application)(scope, receive, send)

    asyncio.run(run())
    return int(sent[0]["status"])


@pytest.mark.parametrize("guarded", [_vllms, _ours])
def test_the_key_is_asked_for_whatever_the_host_header_says(guarded: Callable[[Any], Any]) -> None:
    """CVE-2026-48746. `gb10 serve` has a guard of its own in place of vLLM's."""
    assert _status(guarded, "/v1/models", b"localhost", None) == 401
    assert _status(guarded, "/v1/models", BAD_HOST, None) == 401
    assert _status(guarded, "/v1/models", BAD_HOST, "wrong") == 401
    assert _status(guarded, "/v1/models", BAD_HOST, "secret") == 200
    assert _status(guarded, "/health", BAD_HOST, None) == 200


@pytest.mark.parametrize("host", [b"localhost:8000", BAD_HOST, b"localhost/health#"])
def test_the_host_header_does_not_change_the_path(host: bytes) -> None:
    """CVE-2026-48710."""
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "server": ("localhost", 8000),
        "path": "/v1/models",
        "query_string": b"",
        "headers": [(b"host", host)],
    }
    assert starlette.requests.Request(scope).url.path == "/v1/models"
