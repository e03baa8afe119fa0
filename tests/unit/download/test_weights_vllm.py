"""The files of weights that are fetched are those that vLLM's own loader takes of a folder with all."""

import json
from pathlib import Path

import pytest
from hub_model import INDEX

from gb10.download import plan

SHARDS = ("model-1.safetensors", "model-2.safetensors")
MORE = (
    "consolidated.safetensors",
    "extra.safetensors",
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.bin",
    "a.pt",
    "scheduler.pt",
)


@pytest.mark.parametrize(
    "names",
    [
        (*SHARDS, INDEX),
        (*SHARDS, INDEX, "extra.safetensors", "pytorch_model.bin"),
        (*SHARDS, INDEX, *MORE),
        (*SHARDS, *MORE),
        ("consolidated.safetensors", "pytorch_model.bin"),
        ("pytorch_model.bin", "training_args.bin", "optimizer.bin", "a.pt"),
        ("a.pt", "scheduler.pt"),
    ],
    ids=["shards", "others beside", "all", "no index", "mistral", "bin", "pt"],
)
@pytest.mark.parametrize("load_format", plan.LOAD_FORMATS)
def test_as_vllm_chooses(tmp_path: Path, names: tuple[str, ...], load_format: str) -> None:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    for name in names:
        (tmp_path / name).touch()
    indexed = SHARDS if INDEX in names else ()
    if indexed:
        weight_map = {str(at): name for at, name in enumerate(SHARDS)}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    loader = DefaultModelLoader(LoadConfig(load_format=load_format))
    try:
        _, files, *_ = loader._prepare_weights(str(tmp_path), None, None, True, None)
    except RuntimeError:
        files = []
    assert plan.weights(names, indexed, load_format) == {Path(file).name for file in files}
