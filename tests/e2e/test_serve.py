"""`gb10 serve` from the start to SIGTERM, through the `openai` client, with MTP off and then on.

Two servers are started in all, one after the other; the tests run in file order and the last one of
each server ends it. GB10_HELDOUT names the held-out text, JSON lines with a "text" each.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve, command, descendants, still_alive

pytest.importorskip("openai", reason="the openai client is not installed")
import openai
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

STOP_LIMIT = 10.0
NAME = "gb10-demo"
KEY = "k3y-of-the-test"
MESSAGES = [{"role": "user", "content": "Say something about block scales."}]
COMPACT_JSON = '{"backend":"xgrammar","disable_any_whitespace":true}'
SPECULATIVE = '{"method":"mtp","num_speculative_tokens":2}'

Start = Callable[..., Serve]


@pytest.fixture(scope="module")
def plain(start_serve: Start) -> Serve:
    """The demo model without MTP. Trained on code only, it may fill JSON with white space for ever.

    Its canary comes every 2 s, or rather when a hundredth of the time allows it.
    """
    return start_serve("--structured-outputs-config", COMPACT_JSON, GB10_CANARY_INTERVAL="2")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Python files that leave a mark in ``marks`` when they run."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "marks").mkdir()
    for name in ("colorsys", "json", "sitecustomize", "torch", "transformers", "typer", "vllm", "yaml"):
        place = folder / name if name in ("torch", "vllm") else folder / f"{name}.py"
        if not place.suffix:
            place.mkdir()
            place /= "__init__.py"
        place.write_text(f"open({str(folder / 'marks' / name)!r}, 'w').close()\n")
    return folder


@pytest.fixture(scope="module")
def mtp(start_serve: Start, hostile: Path) -> Serve:
    """The demo model with MTP, asked for as a JSON argument in VLLM_EXTRA_ARGS' flag, and with a key.

    Guides for older versions turn chunked prefill off beside MTP; vLLM would end over that.
    """
    options = f"--speculative-config '{SPECULATIVE}' --enable-prefix-caching --no-enable-chunked-prefill"
    return start_serve("--vllm-args", options, "--api-key", "other", KEY, "--open-metrics", folder=hostile)


@pytest.fixture
def client(plain: Serve) -> Iterator[Any]:
    with openai.OpenAI(base_url=plain.url, api_key="none", timeout=120, max_retries=0) as made:
        yield made


def greedy(client: Any, tokens: int = 24) -> str:
    """The greedy chat answer, always ``tokens`` long."""
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == tokens
    return str(answer.choices[0].message.content or "")


def test_what_it_prints(plain: Serve) -> None:
    assert re.search(r"^engine +vLLM on CPU, NVFP4 mode dequant$", plain.text, re.MULTILINE)
    assert re.search(r"^NVFP4 MoE +any +gb10 dequant ", plain.text, re.MULTILINE)
    assert "loading weights" in plain.text
    assert f"http://127.0.0.1:{plain.port}/v1  (model name: {NAME})" in plain.text
    found = re.search(r"^stages: (.*?)^ready after (\d+) s", plain.text, re.MULTILINE | re.DOTALL)
    assert found is not None
    stages, total = found.groups()
    assert "loading weights" in stages and "starting Python and vLLM" in stages
    assert abs(sum(map(float, re.findall(r"([\d.]+) s\b", stages))) - float(total)) < 2
    table = plain.text.split("operation", 1)[1].split("\nmemory ")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    print(f"ready after {plain.seconds:.1f} s")


def test_vllm_chose_what_the_table_says(plain: Serve) -> None:
    assert not [line for line in plain.lines if "vLLM chose" in line or "the table says" in line]


def test_its_curl_line_works(plain: Serve) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = next(line for line in plain.lines if line.strip().startswith("curl "))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=True)
    answer = json.loads(done.stdout)
    assert 0 < answer["usage"]["completion_tokens"] <= 65
    text = answer["choices"][0]["text"]
    print(text)
    # The other two parameters are described, the docstring ends, and code follows.
    assert re.match(r""" .+\n        port: .+\n        timeout: .+\n(?s:.*)\n    ""\"\n    \S""", text)


COMPLETIONS = (
    # prompt, pattern that the greedy completion starts with
    ("import numpy as", r" np\b"),
    ("from typing import", r" (\w+, )+\w+\n"),
    ("if __name__ ==", r""" ['"]__main__['"]:\n"""),
    ("for i in range(", r"(len\(|\d)[^\n]*:\n"),
    ("raise ValueError(", r"""\s*f?['"]\w+"""),
    ("try:\n    import json\nexcept", r" (Import|ModuleNotFound)Error:\n"),
    ("with open(path) as", r" \w+:\n"),
    ("    def __init__(self, name, value):\n        self.name = name", r"\n        self\.value = value\n"),
    ("class Point:\n    def __init__(self, x, y):\n        self.x = x", r"\n        self\.y = y\n"),
    (
        "class Stack:\n    def __init__(self):\n        self._items = []\n\n"
        '    def push(self, item):\n        """Put an item on the stack."""',
        r"\n        self\._items\.append\(item\)\n",
    ),
    ('def mean(values):\n    """Return the mean of the values."""', r"\n    return (np\.mean|sum)\("),
)
"""What any reader of Python expects next."""


@pytest.mark.parametrize(("prompt", "pattern"), COMPLETIONS)
def test_it_completes_python(prompt: str, pattern: str, client: Any) -> None:
    answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=24, temperature=0)
    text = str(answer.choices[0].text)
    print(repr(prompt), "->", repr(text))
    assert re.match(pattern, text), text


HELDOUT_DOCUMENTS = 12
HELDOUT_TOKENS = 384
HELDOUT_NATS = 2.6
"""Mean loss per token, in nats, that the served model must stay below. Guessing costs log 6144 = 8.7."""


def losses(client: Any, tokens: list[int]) -> list[float]:
    """The negative log probability of each token but the first."""
    answer = client.completions.create(
        model=NAME, prompt=tokens, max_tokens=1, temperature=0, echo=True, logprobs=0
    )
    given = answer.choices[0].logprobs.token_logprobs
    assert given[0] is None
    return [-float(logprob) for logprob in given[1 : len(tokens)]]


def test_heldout_text_is_far_likelier_than_chance(client: Any, demo_model: Path) -> None:
    """And than the same tokens in reverse order, which no better guess at their frequencies could tell."""
    heldout = os.environ.get("GB10_HELDOUT")
    if not heldout:
        pytest.skip("GB10_HELDOUT is not set")
    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    with Path(heldout).open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    chosen = [text for text in texts if len(text) > 6 * HELDOUT_TOKENS]
    chosen = chosen[:: max(len(chosen) // HELDOUT_DOCUMENTS, 1)][:HELDOUT_DOCUMENTS]
    assert len(chosen) == HELDOUT_DOCUMENTS
    forward, backward = [], []
    for text in chosen:
        tokens = tokenizer.encode(text[: 6 * HELDOUT_TOKENS]).ids[:HELDOUT_TOKENS]
        forward += losses(client, tokens)
        backward += losses(client, tokens[::-1])
    loss, control = statistics.fmean(forward), statistics.fmean(backward)
    print(f"{len(forward)} tokens: perplexity {math.exp(loss):.1f}, reversed {math.exp(control):.0f}")
    assert loss < HELDOUT_NATS
    assert control > 2 * HELDOUT_NATS


def test_models(client: Any) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [NAME]


def test_chat_is_deterministic_when_greedy(client: Any) -> None:
    text = greedy(client)
    assert text
    assert greedy(client) == text


def test_sampling_with_a_seed_repeats(client: Any) -> None:
    def sample(seed: int) -> str:
        answer = client.completions.create(
            model=NAME, prompt="The", max_tokens=16, temperature=1.0, seed=seed
        )
        return str(answer.choices[0].text)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_streaming_gives_the_same_text(client: Any) -> None:
    stream = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len([part for part in parts if part]) > 1
    assert "".join(parts) == greedy(client)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


def test_logprobs(client: Any) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=5
    )
    entries = answer.choices[0].logprobs.content
    assert entries
    for entry in entries:
        top = [choice.logprob for choice in entry.top_logprobs]
        assert len(top) == 5
        assert top == sorted(top, reverse=True)
        assert top[0] <= 0
        assert entry.logprob == pytest.approx(top[0], abs=1e-4)


def test_json_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "backend": {"type": "string", "enum": ["marlin", "cutlass"]},
            "packed": {"type": "boolean"},
            "bits": {"type": "integer", "enum": [4, 8, 16]},
        },
        "required": ["backend", "packed", "bits"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        max_tokens=256,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "route", "schema": schema, "strict": True},
        },
    )
    document = json.loads(answer.choices[0].message.content or "")
    assert set(document) == {"backend", "packed", "bits"}
    assert document["backend"] in ("marlin", "cutlass")
    assert isinstance(document["packed"], bool)
    assert document["bits"] in (4, 8, 16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 10**6}, "max_tokens|maximum context|max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 20000}]}, "context|longer|length"),
        ({"top_logprobs": 5}, "logprobs"),
    ],
)
def test_bad_request_is_a_clear_400(client: Any, wrong: dict[str, object], message: str) -> None:
    request = {"model": NAME, "messages": MESSAGES, "max_tokens": 4, **wrong}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.chat.completions.create(**request)
    assert caught.value.status_code == 400


def test_unknown_model_is_a_404(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)


def concurrent(client: Any, count: int) -> None:
    """``count`` requests at once; each answer must be that of its own prompt."""

    def ask(number: int) -> tuple[int, str, int]:
        answer = client.completions.create(
            model=NAME,
            prompt=f"Request {number}:",
            max_tokens=16,
            temperature=0,
            echo=True,
            extra_body={"ignore_eos": True},
        )
        return number, answer.choices[0].text, answer.usage.completion_tokens

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(ask, range(count)))
    assert len(answers) == count
    for number, text, tokens in answers:
        assert text.startswith(f"Request {number}:")
        assert tokens == 16


def test_32_concurrent_requests(client: Any) -> None:
    concurrent(client, 32)


def run_again(variables: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command(), *arguments], capture_output=True, text=True, env=variables, timeout=120, check=False
    )


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """The one error line of a start that was refused."""
    assert done.returncode == 2, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("gb10: error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def test_port_in_use_is_refused(plain: Serve, serve_variables: dict[str, str]) -> None:
    error = refused(run_again({**serve_variables, "PORT": str(plain.port)}))
    assert f"port {plain.port} on 127.0.0.1 is in use" in error


def test_open_address_without_a_key_is_refused(serve_variables: dict[str, str]) -> None:
    assert "add --api-key KEY" in refused(run_again(serve_variables, "--host", "0.0.0.0"))


def fetched(serve: Serve, path: str) -> tuple[int, bytes]:
    """The HTTP status and the body of what a server answers, without a key."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{serve.port}{path}", timeout=60) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_what_really_runs(plain: Serve, serve_variables: dict[str, str]) -> None:
    """/v1/gb10/routing and `gb10 routing --live` say the same, and what the start printed."""
    status, body = fetched(plain, "/v1/gb10/routing")
    answer = json.loads(body)
    assert status == 200
    assert (answer["vllm"], answer["target"]) == ("0.32.0", "CPU, NVFP4 mode dequant")
    ours = {"kernel": "gb10 dequant", "tokens": None, "whose": "ours"}
    assert {"operation": "nvfp4_linear", **ours} in answer["ran"]
    assert {"operation": "nvfp4_moe", **ours} in answer["ran"]
    assert {row["operation"] for row in answer["planned"]} >= {"nvfp4_linear", "nvfp4_moe", "lm_head"}
    assert answer["differences"] == []
    found = re.match(r"14 tokens in [\d.]+ s, decode and prefill differ by ([\d.]+): ", answer["canary"])
    assert found is not None, answer["canary"]
    print(answer["canary"])
    assert float(found[1]) < 0.1
    done = subprocess.run(
        [sys.executable, "-m", "gb10", "routing", "--live", "--json"],
        env=os.environ | {"XDG_STATE_HOME": serve_variables["XDG_STATE_HOME"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    servers = json.loads(done.stdout)
    assert answer in [{name: part for name, part in server.items() if name != "log"} for server in servers]


def overwrite(pids: set[int], old: bytes, new: bytes) -> int:
    """Write ``new`` over ``old`` in the memory of these processes; the number of places."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if (found := re.match(r"(\w+)-(\w+) rw", line)) is None:
                    continue
                begin, end = (int(text, 16) for text in found.groups())
                with contextlib.suppress(OSError, OverflowError):
                    memory.seek(begin)
                    data, at = memory.read(end - begin), -1
                    while (at := data.find(old, at + 1)) >= 0:
                        memory.seek(begin + at)
                        count += memory.write(new) == len(new)
    return count


def test_health_turns_red_when_the_model_breaks(plain: Serve, demo_model: Path) -> None:
    """The norm before the head becomes NaN in memory: vLLM's processes live on, and answer noise."""
    assert fetched(plain, "/health") == (200, b"")
    with safe_open(demo_model / "model.safetensors", "pt") as tensors:
        norm = tensors.get_tensor("model.norm.weight").view(torch.uint8).numpy().tobytes()
    assert overwrite(descendants(plain.process.pid) - {plain.process.pid}, norm, b"\xff" * len(norm)) > 0
    # A canary takes a hundredth of the time at most: one that took 3 s comes again after 300.
    deadline = time.monotonic() + 600
    while (answer := fetched(plain, "/health"))[0] == 200:
        assert time.monotonic() < deadline, "no canary has found it"
        time.sleep(0.5)
    assert answer[0] == 503
    assert json.loads(answer[1]) == {"error": "the model's answer is not a number (nan)"}
    assert fetched(plain, "/ping")[0] == 503
    assert json.loads(fetched(plain, "/v1/gb10/routing")[1])["unhealthy"] == json.loads(answer[1])["error"]
    while "unhealthy: the model's answer is not a number (nan) (/health" not in plain.text:
        assert time.monotonic() < deadline, plain.text
        time.sleep(0.1)


def segments(pids: set[int]) -> set[Path]:
    """The shared memory that these processes use."""
    used = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            used |= set(re.findall(r"(/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE))
    return {Path(name) for name in used}


def test_sigterm_ends_it_and_leaves_nothing(plain: Serve) -> None:
    pids = descendants(plain.process.pid)
    shared = segments(pids)
    # The message queues of the engine core and its worker.
    assert len(shared) >= 2
    # Supervisor, API server, engine core, worker. Their titles are no sign: setting one fails where the first
    # variable of the environment was changed before.
    assert len(pids) >= 4
    began = time.monotonic()
    plain.process.send_signal(signal.SIGTERM)
    assert plain.process.wait(STOP_LIMIT) == 0
    assert still_alive(pids, 0.0) == set()
    assert [path for path in shared if path.exists()] == []
    assert time.monotonic() - began < STOP_LIMIT
    assert plain.lines[-1] == "stopped"


def metric(serve: Serve, name: str) -> float:
    """One of vLLM's counters."""
    with urllib.request.urlopen(f"http://127.0.0.1:{serve.port}/metrics", timeout=30) as answer:
        found = re.search(rf"^vllm:{name}\{{[^}}]*\}} ([\d.e+]+)", answer.read().decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def status(serve: Serve, path: str, body: dict[str, object] | None = None, key: str | None = None) -> int:
    """The HTTP status of one request, with a key or without."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{serve.port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_key_guards_everything_but_health(mtp: Serve) -> None:
    """The walk over every route is tests/unit/serve/test_serve_guard.py; here is the real server."""
    body = {"model": NAME, "prompt": "import", "max_tokens": 1}
    for path in ("/v1/completions", "/invocations", "/tokenize", "/detokenize", "//v1/completions"):
        assert status(mtp, path, body) == 401, path
        assert status(mtp, path, body, "no") == 401, path
    for path in ("/version", "/load", "/v1/models", "/openapi.json", "/kv_event_sources"):
        assert status(mtp, path) == 401, path
    assert status(mtp, "/health") == 200
    assert status(mtp, "/metrics") == 200
    for key in (KEY, "other"):
        assert status(mtp, "/invocations", body, key) == 200
        assert status(mtp, "/v1/models", key=key) == 200
    line = next(line for line in mtp.lines if line.strip().startswith("curl "))
    assert '-H "Authorization: Bearer YOUR_API_KEY"' in line
    assert "try it (put the API key for YOUR_API_KEY):" in mtp.text


def test_no_process_shows_the_key(mtp: Serve) -> None:
    pids = descendants(mtp.process.pid)
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    # The server's own, without the wrapper's: that one is bash until it becomes the server.
    assert any(b"gb10" in line for line in lines.values())
    assert not [line for line in lines.values() if KEY.encode() in line]


def test_nothing_of_the_current_folder_runs(mtp: Serve, hostile: Path) -> None:
    assert mtp.seconds > 0
    assert list((hostile / "marks").iterdir()) == []


@pytest.mark.skipif("GB10_SERVE_COMMAND" not in os.environ, reason="the user's own Python keeps PYTHONPATH")
def test_nothing_of_pythonpath_runs(serve_variables: dict[str, str], hostile: Path) -> None:
    variables = {**serve_variables, "PYTHONPATH": str(hostile), "PYTHONHOME": str(hostile)}
    done = run_again(variables, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert list((hostile / "marks").iterdir()) == []


def test_what_vllm_would_end_over_is_left_out_and_said(mtp: Serve) -> None:
    assert "--no-enable-chunked-prefill is left out: prefix caching needs" in " ".join(mtp.text.split())


def test_mtp_answers_and_drafts(mtp: Serve) -> None:
    with openai.OpenAI(base_url=mtp.url, api_key=KEY, timeout=120, max_retries=0) as made:
        assert greedy(made) == greedy(made)
        concurrent(made, 32)
    drafts = metric(mtp, "spec_decode_num_draft_tokens_total")
    accepted = metric(mtp, "spec_decode_num_accepted_tokens_total")
    print(f"{accepted:.0f} of {drafts:.0f} draft tokens accepted")
    assert drafts > 0
    # One of 6144 tokens would be right by chance.
    assert accepted > 0.2 * drafts
    print(f"ready after {mtp.seconds:.1f} s")


def test_mtp_with_prefix_caching_hits_and_lives_on(mtp: Serve) -> None:
    """Stock vLLM dies at the first request (patches/vllm/0004). Hits need two blocks of 256 tokens."""
    with openai.OpenAI(base_url=mtp.url, api_key=KEY, timeout=120, max_retries=0) as made:
        (model,) = made.models.list().data
        prompt = [100 + 7 * number % 3000 for number in range(1000)]
        for _ in range(3):
            answer = made.completions.create(model=model.id, prompt=prompt, max_tokens=8, temperature=0)
            assert answer.usage is not None
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1000, 8)
    hits = metric(mtp, "prefix_cache_hits_total")
    print(f"{hits:.0f} of 3000 prompt tokens from the cache")
    assert hits >= 256


def test_sigkill_of_the_supervisor_leaves_nothing(mtp: Serve) -> None:
    pids = descendants(mtp.process.pid)
    shared = segments(pids)
    assert len(pids) >= 4 and len(shared) >= 2
    os.kill(mtp.process.pid, signal.SIGKILL)
    mtp.process.wait(STOP_LIMIT)
    assert still_alive(pids, STOP_LIMIT) == set()
    assert [path for path in shared if path.exists()] == []
