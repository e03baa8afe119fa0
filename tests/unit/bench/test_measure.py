"""A server is measured with vLLM's client: what reaches it, what comes out, what is refused."""

import json
import socket
import statistics
from pathlib import Path
from typing import Any

import pytest
from stand_in import MODEL, Behaviour, serving

from gb10 import cli
from gb10.bench import battery, results, target
from gb10.bench.gauges import Gauges
from gb10.errors import UserError

QUICK = ["--tokens", "16", "--repeat", "2", "--long", "512"]


@pytest.fixture(autouse=True)
def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in target.KEYS:
        monkeypatch.delenv(name, raising=False)


def test_all_points_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how, file = Behaviour(drafts=2, gap=0.01, first=0.05), tmp_path / "a.json"
    with serving(how) as port:
        words = ["--concurrency", "1", "3", "--json", str(file), "--commit", "abc"]
        assert cli.main(["bench", str(port), *QUICK, *words]) == 0
    printed = capsys.readouterr()
    assert "measuring mixed x 3" in printed.err and f"wrote {file}" in printed.err
    found = results.load(file)
    assert [(one.text, one.concurrency) for one in found.points] == [
        *((text, 1) for text in battery.TEXTS),
        (battery.MIXED, 3),
    ]
    assert all(len(one.repeats) == 2 for one in found.points)
    prose = found.points[0]
    # First token and gaps are sleeps: all together take no less. A client without a processor reads late.
    assert all(0.2 <= request.seconds + 1e-6 < 2 for request in prose.requests)
    assert prose.spread("ttft").median >= 50
    assert all(len(request.between) == 15 for request in prose.requests)
    assert prose.drafts is not None
    assert prose.drafts.by_position == pytest.approx((1.0, 0.5))
    assert prose.drafts.length == pytest.approx(2.5)
    mixed = found.points[-1]
    assert [len(repeat.requests) for repeat in mixed.repeats] == [3, 3]
    assert mixed.spread("throughput").median > 1.5 * prose.spread("throughput").median
    assert found.about["model"] == MODEL and found.about["commit"] == "abc"
    assert found.about["server"] == "0.0.stand-in" and found.about["context"] == 4096
    assert found.about["machine"]["cores"] >= 1


def test_every_prompt_is_another_one_and_each_length_is_fixed() -> None:
    how = Behaviour()
    with serving(how) as port:
        assert cli.main(["bench", str(port), *QUICK, "--texts", "code", "long", "--concurrency", "2"]) == 0
    assert len(how.prompts) == len(set(how.prompts)) == 3 + 3 + 3 * 2
    assert len({prompt[:19] for prompt in how.prompts}) == len(how.prompts)
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in how.bodies)
    assert {body["max_tokens"] for body in how.bodies} == {16}
    long = [prompt for prompt in how.prompts if "Day 1," in prompt]
    # The stand-in counts four characters a token.
    assert statistics.median(len(prompt) / 4 for prompt in long) == pytest.approx(512, abs=16)
    assert sum(battery.CODE in prompt for prompt in how.prompts) == 3 + 3 * 2


def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    how = Behaviour()
    with serving(how) as port:
        words = ["--chat", "--texts", "math", "--concurrency", "1"]
        assert cli.main(["bench", str(port), *QUICK, *words]) == 0
        assert all("messages" in body for body in how.bodies) and len(how.bodies) == 3
        how.chat = False
        capsys.readouterr()
        assert cli.main(["bench", str(port), *QUICK, *words]) == 2
    printed = capsys.readouterr().err
    assert "the model has no chat template; leave --chat out" in printed and printed.count("\n") == 1


def test_the_key_is_read_from_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, "--texts", "json", "--concurrency", "1"]
    with serving(Behaviour(key="secret")) as port:
        assert cli.main(["bench", str(port), *words]) == 2
        printed = capsys.readouterr().err
        assert "wants a key; put it into OPENAI_API_KEY or VLLM_API_KEY" in printed
        assert printed.count("\n") == 1
        monkeypatch.setenv("VLLM_API_KEY", "wrong")
        assert cli.main(["bench", str(port), *words]) == 2
        assert "another key than the one in" in capsys.readouterr().err
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        assert cli.main(["bench", str(port), *words]) == 0


def test_a_context_that_is_short_shortens_the_long_input(capsys: pytest.CaptureFixture[str]) -> None:
    how = Behaviour(context=1024)
    with serving(how) as port:
        words = ["--tokens", "16", "--repeat", "1", "--texts", "long", "--concurrency", "1"]
        assert cli.main(["bench", str(port), *words]) == 0
        assert "the long input is 944 tokens, not 8192" in capsys.readouterr().err
        how.context = 300
        assert cli.main(["bench", str(port), *words]) == 2
        assert "no room for a long input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("behaviour", "more", "words"),
    [
        ({"loading": True}, [], "is not ready yet (HTTP 503: loading)"),
        ({}, ["--model", "other"], f"serves no model named 'other'; it serves: {MODEL}"),
        ({"short": 1}, [], "gave 1 tokens where 2 were asked for: it does not obey ignore_eos"),
        ({"whole": True}, [], "gives its answers in one piece"),
        ({"die_after": 3}, [], "failed in the middle"),
        ({}, ["--texts", "poem"], "no text named 'poem'"),
        ({}, ["--texts", "long", "--long", "0"], "nothing to measure"),
        ({}, ["--long", "10"], "10 is below 256"),
        ({}, ["--tokens", "2"], "not a whole number of 16 or more"),
        ({}, ["--concurrency", "0"], "not a whole number of 1 or more"),
        ({}, ["--concurrency", "5000"], "above 1024"),
        ({"context": 100}, ["--texts", "json"], "failed in the middle"),
    ],
)
def test_a_bad_server_or_option_is_one_line_and_nothing_is_written(
    behaviour: dict[str, Any],
    more: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, html = tmp_path / "a.json", tmp_path / "a.html"
    with serving(Behaviour(**behaviour)) as port:
        out = ["--json", str(file), "--html", str(html)]
        assert cli.main(["bench", str(port), *QUICK, "--concurrency", "1", *more, *out]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err
    assert [line for line in printed.err.splitlines() if not line.startswith("measuring ")] == [
        printed.err.splitlines()[-1]
    ]
    assert list(tmp_path.iterdir()) == []


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert cli.main(["bench", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"gb10: error: no server answers at http://127.0.0.1:{port} (Connection refused); start one, or wait "
        "until it says that it is ready\n"
    )


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("8000", "http://127.0.0.1:8000"),
        ("spark:8000", "http://spark:8000"),
        ("http://spark:8000/v1/", "http://spark:8000"),
        ("https://[::1]:8443/some/v1", "https://[::1]:8443/some"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert target.parse(given) == url


@pytest.mark.parametrize(
    "given", ["", "0", "70000", "ftp://spark", "http://", "a b", "http://u:p@h", "http://h?q"]
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(UserError, match="no address of a server"):
        target.parse(given)


def test_the_battery_is_what_results_name() -> None:
    assert len(battery.FINGERPRINT) == 16
    assert battery.long_text(3000) == battery.long_text(9000)[:3000]
    assert {len(text) for text in (battery.nonces()() for _ in range(50))} == {19}
    assert battery.nonces(1)() == battery.nonces(1)() != battery.nonces(2)()


def test_gauges_without_a_gpu() -> None:
    found = Gauges()
    if found.about() is not None:
        pytest.skip("this machine has a GPU")
    assert found.watch() is None


class Nvml:
    """NVML of a GB10: it says power and clock, and not the temperature."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        """A question that is not answered."""

    def nvmlDeviceGetName(self, device: int) -> str:
        return f"GPU {device}"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        raise self.NVMLError

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        return 30_000 + device

    def nvmlDeviceGetClockInfo(self, device: int, kind: int) -> int:
        return 2400 - device

    def nvmlDeviceGetTemperature(self, device: int, kind: int) -> int:
        raise self.NVMLError


def test_gauges_ask_each_value_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Gauges()
    monkeypatch.setattr(found, "_nvml", Nvml())
    monkeypatch.setattr(found, "_devices", [0, 1])
    assert found.about() == {"gpus": ["GPU 0", "GPU 1"], "driver": "580.95", "cuda": None}
    watch = found.watch()
    assert watch is not None
    with watch:
        pass
    power = watch.power()
    assert power.samples >= 1 and power.temperature is None
    assert power.watts == pytest.approx(60.001) and power.clock == 2399


def test_json_has_every_sample(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with serving(Behaviour()) as port:
        words = ["--texts", "prose", "--concurrency", "1", "--json", str(file)]
        assert cli.main(["bench", f"http://localhost:{port}/v1", *QUICK, *words]) == 0
    content = json.loads(file.read_text())
    for repeat in content["points"][0]["repeats"]:
        assert len(repeat["requests"][0]["between"]) == 15 and repeat["requests"][0]["start"] > 0
