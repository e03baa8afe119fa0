"""A server that hangs ends the run, and so does the user: one line, nothing written, nothing left."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stand_in import Behaviour, serving

from gb10 import cli
from gb10.bench import load, target, watch
from gb10.bench.watch import Limits
from gb10.errors import UserError

WORDS = ["--tokens", "16", "--repeat", "1", "--long", "0", "--texts", "prose", "code"]


def wait_until_broken(how: Behaviour, count: int) -> None:
    """The server sees that its client is gone when it next writes."""
    end = time.monotonic() + 10
    while how.broken < count and time.monotonic() < end:
        time.sleep(0.02)
    assert how.broken == count


@pytest.mark.parametrize(
    ("behaviour", "options", "words"),
    [
        (
            {"hang_after": 5, "hang_from": 3},
            ["--gap-limit", "2"],
            "request 1 of 1 of 'code' gave nothing for 2 s after 5 tokens (more with drafts); its log says "
            "why, --gap-limit SECONDS waits longer",
        ),
        (
            {"hang_after": 0, "hang_from": 2},
            ["--gap-limit", "1", "--request-limit", "2.5"],
            "request 1 of 1 of 'prose' was not done after 2.5 s and 0 tokens (more with drafts); its log "
            "says why, --request-limit SECONDS waits longer",
        ),
        (
            {"gap": 0.05},
            ["--gap-limit", "5", "--request-limit", "0.4", "--chat"],
            "request 1 of 1 of 'prose' was not done after 0.4 s and",
        ),
    ],
)
def test_a_hang_is_one_line(
    behaviour: dict[str, float],
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.json"
    load.prepare()
    with serving(Behaviour(**behaviour)) as port:  # type: ignore[arg-type]
        began = time.monotonic()
        given = ["bench", str(port), *WORDS, "--concurrency", "1", *options, "--json", str(file)]
        assert cli.main(given) == 2
        assert time.monotonic() - began < 20
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("measuring ")]
    assert len(lines) == 1 and lines[0].startswith(f"gb10: error: http://127.0.0.1:{port} hangs: {words}")
    assert list(tmp_path.iterdir()) == []


def test_a_first_request_that_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    how = Behaviour(mute=("first",))
    with serving(how) as port:
        began = time.monotonic()
        assert cli.main(["bench", str(port), *WORDS, "--request-limit", "1"]) == 2
        assert time.monotonic() - began < 10
        how.ended.set()
    # The stand-in says that its client went away.
    said = capsys.readouterr().err.splitlines()
    (line,) = (one for one in said if one.startswith("gb10: error: "))
    assert "hangs: a first request of two tokens gave nothing for 1 s" in line


def test_counters_that_never_come_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "_COUNTERS", 0.5)
    monkeypatch.setattr(target, "_TALK_LIMIT", 0.5)
    how = Behaviour(mute=("/metrics",))
    with serving(how) as port:
        began = time.monotonic()
        assert cli.main(["bench", str(port), *WORDS]) == 0
        assert time.monotonic() - began < 15
        how.ended.set()
    assert "prose" in capsys.readouterr().out


ODD = {
    "usage in words": {"usage": {"prompt_tokens": "a", "completion_tokens": "16"}},
    "usage of no number": {"usage": {"prompt_tokens": 5, "completion_tokens": "many"}},
    "counters of bytes": {"drafts": 2, "counters": b"\xff\xfe\x00 1\n"},
    "counters without end": {
        "drafts": 2,
        "counters": b"vllm:spec_decode_num_drafts_total 5\n"
        b"vllm:spec_decode_num_accepted_tokens_total 1e400\n",
    },
}


@pytest.mark.parametrize("behaviour", ODD.values(), ids=ODD)
def test_what_no_server_says(
    behaviour: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, or it is left out: never a traceback after a long measurement."""
    file = tmp_path / "a.json"
    with serving(Behaviour(**behaviour)) as port:
        status = cli.main(["bench", str(port), *WORDS, "--json", str(file)])
    said = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in said
    assert file.exists() == (status == 0)
    if status:
        assert said.splitlines()[-1].startswith("gb10: error: ")
        assert "sends what no server with OpenAI's API sends" in said


def test_all_requests_end_when_one_hangs(recwarn: pytest.WarningsRecorder) -> None:
    how = Behaviour(hang_after=3, hang_from=1)
    with serving(how) as port:
        found = target.find(f"http://127.0.0.1:{port}", None, chat=False)
        load.prepare()
        prompts = [f"[{at}] a text" for at in range(4)]
        with pytest.raises(
            UserError, match=r"request [1-4] of 4 of 'mixed x 4' gave nothing for 1 s after 3"
        ):
            load.repeat(found, prompts, 16, chat=False, label="mixed x 4", limits=Limits(1, 60))
        wait_until_broken(how, 4)
    assert not [one for one in recwarn if "Unclosed" in str(one.message)]


def test_a_limit_that_none_exceeds_ends_nothing() -> None:
    """Longer in all than the gap's limit, and each gap below it."""
    with serving(Behaviour(gap=0.2, first=2.5)) as port:
        found = target.find(f"http://127.0.0.1:{port}", None, chat=False)
        load.prepare()
        made = load.repeat(found, ["a", "b"], 16, chat=False, label="x", limits=Limits(2, 60))
    assert all(request.seconds > 5 for request in made.requests)


def test_the_client_is_as_it_was() -> None:
    import aiohttp
    from vllm.benchmarks import serve

    with serving(Behaviour(hang_after=1)) as port:
        found = target.find(f"http://127.0.0.1:{port}", None, chat=False)
        with pytest.raises(UserError, match="hangs"):
            load.repeat(found, ["a"], 16, chat=False, label="x", limits=Limits(0.2, 30))
    assert serve.aiohttp is aiohttp


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_limits_that_are_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "9", "--gap-limit", value]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_is_one_line(tmp_path: Path) -> None:
    how = Behaviour(hang_after=4, hang_from=2)
    words = [*WORDS, "--concurrency", "1", "--json", str(tmp_path / "a.json")]
    with serving(how) as port:
        process = subprocess.Popen(
            [sys.executable, "-W", "default", "-m", "gb10", "bench", str(port), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests run in the background, SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
        try:
            end = time.monotonic() + 120
            while how.streams < 2 and time.monotonic() < end:
                time.sleep(0.05)
            assert how.streams == 2
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        wait_until_broken(how, 1)
    assert process.returncode == 130 and out == ""
    said = [line for line in err.splitlines() if not line.startswith("measuring ")]
    assert said[-1] == "gb10: interrupted; what was measured is not kept"
    assert "Unclosed" not in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_tasks_of_a_call_do_not_outlive_it() -> None:
    with serving(Behaviour(hang_after=2)) as port:
        found = target.find(f"http://127.0.0.1:{port}", None, chat=False)
        load.prepare()

        async def left() -> int:
            with pytest.raises(UserError, match="hangs"):
                await load._watched(found, ["a", "b"], 16, False, "x", Limits(0.2, 30))
            return len(asyncio.all_tasks()) - 1

        assert asyncio.run(left()) == 0
