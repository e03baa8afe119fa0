"""`gb10 routing --live`: what the logs of running servers say that ran."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gb10 import cli
from gb10.serve.environment import log_folder
from gb10.serve.scratch import open_log, running_logs

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
    assert {"operation": "nvfp4_moe", "kernel": "gb10 moe_grouped", "tokens": 8192} in server["ran"]
    assert {"operation": "kv_cache", "kernel": "bfloat16", "tokens": None} in server["ran"]


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
