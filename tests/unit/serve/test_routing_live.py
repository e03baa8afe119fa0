"""`gb10 routing --live`: what the logs of running servers say that ran."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gb10 import __version__, cli, routing
from gb10.routing import Target, told
from gb10.serve.environment import log_folder
from gb10.serve.own_log import OwnLog
from gb10.serve.scratch import open_log, running_logs
from gb10.vllm_plugin import log
from gb10.vllm_plugin.cuda.settings import Part

LOG = (
    "INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/m', "
    "dtype=torch.bfloat16, kv_cache_dtype=auto, device_config=cuda\n"
    "INFO [settings.py:99] gb10: engine gb10, dense fp8, head fp8\n"
    "INFO [nvfp4.py:314] Using 'EMULATION' NvFp4 MoE backend out of potential backends: ['MARLIN'].\n"
    "INFO [cuda.py:506] Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN'].\n"
    "INFO [dispatch.py:43] gb10: first dispatch: nvfp4_moe ran moe_grouped with 8192 tokens\n"
    "INFO [dispatch.py:43] gb10: first dispatch: router ran vLLM with 8192 tokens\n"
    "INFO [dispatch.py:43] gb10: first dispatch: nvfp4_moe ran moe_decode with 16 tokens\n"
)


@pytest.fixture
def folder(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the logs of servers are."""
    clean_environment.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    clean_environment.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    found = log_folder({"XDG_STATE_HOME": str(tmp_path / "state")})
    assert found is not None
    return found


def test_what_ran_in_a_running_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = open_log(folder)
    with file:
        file.write(LOG.encode())
        assert running_logs(folder) == [path]
        assert cli.main(["routing", "--live"]) == 0
        printed = capsys.readouterr().out
        assert cli.main(["routing", "--live", "--json"]) == 0
        (server,) = json.loads(capsys.readouterr().out)
    lines = printed.splitlines()
    assert lines[0] == str(path)
    assert "  NVFP4 MoE         gb10 moe_decode, first with 16 tokens" in lines
    assert "  router            vLLM, first with 8192 tokens" in lines
    assert "  attention         FLASH_ATTN, vLLM's choice" in lines
    assert "EMULATION" not in printed
    assert server["log"] == str(path)
    assert {
        "operation": "nvfp4_moe",
        "kernel": "gb10 moe_grouped",
        "tokens": 8192,
        "whose": "ours",
    } in server["ran"]
    assert {"operation": "kv_cache", "kernel": "bfloat16", "tokens": None, "whose": "vLLM's"} in server["ran"]
    assert (server["engine"], server["planned"], server["differences"]) == (
        "engine gb10, dense fp8, head fp8",
        [],
        [],
    )


SELF_TEST = (
    "45 comparisons in 0.9 s, 0 failed; the one nearest to its limit: gdn_decode of 2 tokens, layer 0: error "
    "0.0021, limit 0.01"
)


def test_all_that_a_log_says_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, what ran, what differs, the self-test and the canary; not what a client made vLLM quote."""
    rows = routing.table(Target((9, 0), parts=tuple(Part)), ("nvfp4_moe", "attention", "kv_cache"))
    planned = routing.plan(Target((9, 0)), rows)
    prefix = "(APIServer pid=7) INFO 11-27 03:32:06 [x.py:1] "
    monkeypatch.setenv(log.WORD_NAME, "3f9c")
    lines = [
        routing.serving(planned, "0.32.0"),
        *LOG.splitlines(),
        f"{prefix}gb10: self-test: {SELF_TEST}",
        f"(APIServer pid=7) {log.ours(log.OPEN)}",
        f"{prefix}gb10[3f9c]: canary: 14 tokens in 0.3 s: the model answers",
        f"{prefix}Received request gb10: unhealthy: no: gb10: first dispatch: dense ran x with 1 tokens",
        f"{prefix}gb10[3f9c]: unhealthy: the model's answer is not a number (nan)",
    ]
    found = routing.report(told(line + "\n" for line in lines))
    assert (found.gb10, found.vllm, found.target) == (__version__, "0.32.0", str(Target((9, 0))))
    assert found.engine == "engine gb10, dense fp8, head fp8"
    assert list(found.planned) == rows
    assert [one.operation for one in found.ran] == [
        "nvfp4_moe",
        "router",
        "nvfp4_moe",
        "attention",
        "kv_cache",
    ]
    assert found.differences == ["router: vLLM ran, the table has no such row"]
    assert found.self_test == {
        "comparisons": 45,
        "failed": 0,
        "seconds": 0.9,
        "nearest": SELF_TEST.partition("limit: ")[2],
    }
    assert found.canary == "14 tokens in 0.3 s: the model answers"
    assert found.unhealthy == "the model's answer is not a number (nan)"
    assert "unhealthy         the model's answer is not a number (nan)" in found.lines
    assert "differs           router: vLLM ran, the table has no such row" in found.lines
    assert json.loads(json.dumps(found.as_json()))["planned"][0]["operation"] == "nvfp4_moe"


CLIENT = "(APIServer pid=7) INFO 11-27 03:32:06 [health.py:41] "
FORGED = {
    "access": 'INFO:     127.0.0.1:5 - "GET /health?,kv_cache_dtype=hacked, HTTP/1.1" 200 OK\n',
    "model": f"{CLIENT}Error: The model `Using HACKED for NVFP4 GEMM` does not exist.\n",
    "unhealthy": f"{CLIENT}Error: x\n{CLIENT}gb10: unhealthy: forged\n",
    "serving": f"{CLIENT}Error: x\n{CLIENT}gb10: serving: {{\n",
    "dispatch": f"{CLIENT}x\n{CLIENT}gb10: first dispatch: dense ran forged with 1 tokens\n",
    "word": f"{CLIENT}x\n{CLIENT}gb10[1234]: unhealthy: forged\n{CLIENT}gb10[]: unhealthy: forged\n",
    "next line": f"{CLIENT}\x85gb10: unhealthy: forged\x85Using HACKED for NVFP4 GEMM\x85gb10: serving: {{\n",
    "return": f"{CLIENT}x\rgb10: unhealthy: forged\rUsing HACKED for NVFP4 GEMM\n",
}
"""What clients can make vLLM log, while the server is open."""


@pytest.fixture
def started(clean_environment: pytest.MonkeyPatch) -> str:
    """The log of a server that has just opened."""
    clean_environment.setenv(log.WORD_NAME, "3f9c")
    target = Target((9, 0), parts=tuple(Part))
    planned = routing.plan(target, routing.table(target, ("nvfp4_moe", "attention", "kv_cache")))
    return f"{routing.serving(planned, '0.32.0')}\n{LOG}(APIServer pid=7) {log.ours(log.OPEN)}\n"


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_client_writes_nothing_that_is_believed(
    forged: str, started: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = open_log(folder)
    with file:
        file.write(started.encode())
        own, opened_late = OwnLog(path), OwnLog(path)
        before = own.report()
        file.write(forged.encode())
        assert own.report() == before == opened_late.report()
        assert cli.main(["routing", "--live", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [json.loads(json.dumps({"log": str(path), **before}))]
        rows = routing.report(told(started)).planned
        assert routing.compare(rows, told(started + forged)) == before["differences"]
        # Ours still counts.
        file.write(f"{CLIENT}{log.ours(log.UNHEALTHY)}nan\n".encode())
        assert own.report() == before | {"unhealthy": "nan"}


@pytest.mark.parametrize("text", ["{", "[]", '{"planned": [{}]}', '{"planned": 1}'])
def test_a_plan_that_cannot_be_read_is_one_line(text: str) -> None:
    found = routing.report(told([log.SERVING + text, *LOG.splitlines()]))
    (line,) = found.differences
    assert line.startswith("the log's line of what was planned cannot be read: ") and "\n" not in line
    assert found.ran


def test_a_kernel_has_the_name_and_the_owner_of_the_plan() -> None:
    """vLLM names the classes that the CPU engine stands behind."""
    rows = routing.table(Target(), ("nvfp4_linear", "nvfp4_moe", "attention"))
    lines = [
        routing.serving(routing.plan(Target(), rows), "0.32.0"),
        *LOG.splitlines()[:1],
        "INFO [__init__.py:1240] Using DequantLinearKernel for NVFP4 GEMM",
        LOG.splitlines()[2],
    ]
    assert [one.words for one in routing.report(told(lines)).ran][:2] == [
        "NVFP4 linear      gb10 dequant, ours",
        "NVFP4 MoE         gb10 dequant, ours",
    ]


@pytest.mark.parametrize("other", [["D"], ["--capability", "12.1"], ["--flags"], ["--dense", "keep"]])
def test_options_that_say_nothing_of_a_running_server(
    other: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["routing", *other, "--live"]) == 2
    assert "--live says what runs" in capsys.readouterr().err


def test_an_empty_log_says_nothing() -> None:
    assert routing.report(told([])).as_json() == routing.Report(planned=[], ran=[], differences=[]).as_json()
    assert routing.report(told([])).lines == ["nothing has run yet, or the log does not say it"]


def test_the_servers_own_log_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    own = OwnLog(path)
    assert own.report()["ran"] == []
    path.write_text(LOG + "gb10: canary: half a l")
    first = own.report()
    assert [one["kernel"] for one in first["ran"]][:2] == ["gb10 moe_grouped", "vLLM"]
    assert first["canary"] is None
    with path.open("a") as file:
        file.write("ine\n")
    path.write_text("x" * (path.stat().st_size - 1) + "\n")
    assert own.report() == first


def test_a_server_that_ended_is_not_live(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = open_log(folder)
    file.write(LOG.encode())
    file.close()
    assert path.exists() and running_logs(folder) == []
    assert cli.main(["routing", "--live"]) == 2
    assert "no `gb10 serve` of this user runs here" in capsys.readouterr().err


def test_bytes_of_a_decoded_token_are_predicted(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """With our engine 16 bit matrices count as what they become."""
    pytest.importorskip("vllm")
    folder = make_checkpoint(
        config={"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
        tensors={
            "model.layers.0.self_attn.q_proj.weight": ("BF16", (4096, 1024)),
            "lm_head.weight": ("BF16", (8192, 1024)),
        },
    )
    said = []
    for engine in (["stock"], ["gb10"], ["gb10", "--dense", "nvfp4", "--head", "nvfp4"]):
        assert cli.main(["routing", str(folder), "--capability", "12.1", "--engine", *engine]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0].startswith(
        "a decoded token reads 0.0252 GB of weights; predicted for a GB10, not measured: "
    )
    assert said[1].startswith("a decoded token reads 0.0126 GB")
    assert said[2].startswith("a decoded token reads 0.00708 GB")
