"""A checkpoint on disk, by its headers: the audit's figures as a step's, against those of the shapes."""

import json
from pathlib import Path

import pytest
from unit.audit.published import PUBLISHED, QWEN3_6, QWEN3_NEXT, write

from gb10 import cli
from gb10.audit.command import read
from gb10.audit.model import NVFP4, Model, bytes_per_token
from gb10.predict.architecture import architectures
from gb10.predict.audited import sizes, subject
from gb10.predict.engines import predict, published
from gb10.predict.step import READS, Load, work

pytest.importorskip("vllm.version", reason="vLLM is not installed")

NAMES = {QWEN3_NEXT: "qwen3-next-80b-a3b", QWEN3_6: "qwen3.6-35b-a3b"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Headers of the published checkpoints, with holes for weights."""
    top = tmp_path_factory.mktemp("published")
    return {name: write(top / name.replace("/", "--"), PUBLISHED[name]) for name in NAMES}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Model]:
    return {name: read(str(folder))[2] for name, folder in folders.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reads_what_the_audit_says(name: str, models: dict[str, Model]) -> None:
    """The same bytes by another sum; the audit counts a row of the embedding too."""
    model = models[name]
    found = work(sizes(model), Load(context=4096))
    audited = bytes_per_token(model, context=4096)
    rows = audited.parts["embedding"]
    assert sum(found[kind] for kind in READS) == pytest.approx(audited.step - rows)


@pytest.mark.parametrize("name", NAMES)
def test_headers_and_shapes_give_one_step(name: str, models: dict[str, Model]) -> None:
    shapes = published(architectures()[NAMES[name]]).sizes("vllm", "keep", "keep")
    found, expected = sizes(models[name]), shapes
    for count in ("layers", "attention", "gdn", "moe", "shared", "mlp", "experts", "chosen", "matrices"):
        assert getattr(found, count) == getattr(expected, count), count
    for kind in READS:
        assert found.weights[kind] == pytest.approx(expected.weights[kind], rel=0.003, abs=6e6), kind
    for size in ("expert", "head", "draft", "kv_token"):
        assert getattr(found, size) == pytest.approx(getattr(expected, size), rel=0.02), size
    # The audit counts the convolution's state too.
    assert expected.state < found.state < 1.06 * expected.state
    assert found.head_kind == expected.head_kind and found.draft_kind == expected.draft_kind


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["vllm", "gb10"])
@pytest.mark.parametrize("drafts", [0, 2])
def test_headers_and_shapes_give_one_prediction(
    name: str, engine: str, drafts: int, models: dict[str, Model]
) -> None:
    load = Load(2, 1024, drafts)
    one = predict(subject(models[name]), engine, load, dense=NVFP4, head=NVFP4)
    other = predict(published(architectures()[NAMES[name]]), engine, load, dense=NVFP4, head=NVFP4)
    # Of the drafter's layer the audit knows what becomes smaller at load.
    near = 0.03 if drafts and engine == "gb10" else 0.01
    assert one.tokens_per_second == pytest.approx(other.tokens_per_second, rel=near)


def test_another_cache(models: dict[str, Model]) -> None:
    """The checkpoint asks for FP8."""
    model = models[QWEN3_NEXT]
    assert sizes(model, "bf16").kv_token == 2 * sizes(model).kv_token == 2 * sizes(model, "fp8").kv_token


def test_a_folder(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(folders[QWEN3_NEXT])
    assert cli.main(["predict", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"] == []
    rates = [one["tokens_per_second"] for one in found["predictions"]]
    assert rates == [pytest.approx(41.4, rel=0.01), pytest.approx(69.6, rel=0.015)]


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "config.json" in printed.err
