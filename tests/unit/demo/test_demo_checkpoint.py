"""The demo checkpoint: what is in the folder, and that it is the same each time."""

import json
import math
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from gb10.demo import ARCHITECTURES, Architecture, checkpoint, write_checkpoint
from gb10.errors import UserError
from gb10.nvfp4 import dequantize
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

FILES = {
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def module_of(name: str) -> str:
    return name.rpartition(".")[0]


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight") and "embed_tokens" not in name


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def arch(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture
def tiny() -> Architecture:
    """An architecture that is made in a fraction of a second, for tests of the folder around it."""
    return replace(ARCHITECTURES["qwen3_moe"], vocabulary=300, experts=2)


@pytest.fixture(scope="module")
def folder(arch: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / arch.name
    write_checkpoint(out, arch)
    return out


@pytest.fixture(scope="module")
def tensors(folder: Path) -> Tensors:
    loaded: Tensors = load_file(folder / "model.safetensors")
    return loaded


def test_two_runs_in_other_surroundings_give_the_same_bytes(
    arch: Architecture, folder: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    surroundings = {
        "PYTHONHASHSEED": "77",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TZ": "Asia/Tokyo",
    }
    command = [sys.executable, "-m", "gb10.demo", "--out", str(again), "--arch", arch.name]
    subprocess.run(command, check=True, env=os.environ | surroundings, timeout=300)
    assert {path.name for path in again.iterdir()} == FILES
    for name in FILES:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_files_can_be_read_by_everyone(tiny: Architecture, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_checkpoint(tmp_path / "demo", tiny)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "demo").stat().st_mode) == 0o755
    for path in (tmp_path / "demo").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


def test_another_seed_changes_the_weights_only(
    arch: Architecture, folder: Path, tensors: Tensors, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "other", arch, seed=1)
    for name in FILES - {"model.safetensors"}:
        assert (tmp_path / "other" / name).read_bytes() == (folder / name).read_bytes(), name
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert other.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            assert not torch.equal(other[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_it_is_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6


def test_weights_are_finite_and_have_the_sizes_of_the_configuration(folder: Path, tensors: Tensors) -> None:
    config = json.loads((folder / "config.json").read_text())
    hidden = config["hidden_size"]
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], hidden)
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], hidden)
    layers = {int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    assert layers == set(range(config["num_hidden_layers"]))
    experts = {int(match[1]) for name in tensors if (match := re.search(r"\.experts\.(\d+)\.", name))}
    assert experts == set(range(config["num_experts"]))
    for name, tensor in tensors.items():
        assert bool(tensor.float().isfinite().all()), name


def test_quantised_modules_are_complete_and_hold_sane_numbers(tensors: Tensors) -> None:
    quantised = [module_of(name) for name in tensors if name.endswith(".weight_scale")]
    assert quantised
    for module in quantised:
        packed, scales = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
        assert (packed.dtype, scales.dtype) == (torch.uint8, torch.float8_e4m3fn)
        assert scales.shape == (packed.shape[0], packed.shape[1] * 2 // 16)
        for name in ("weight_scale_2", "input_scale"):
            assert (tensors[f"{module}.{name}"].dtype, tensors[f"{module}.{name}"].shape) == (
                torch.float32,
                (),
            )
        columns = packed.shape[1] * 2
        weight = dequantize(packed, scales, tensors[f"{module}.weight_scale_2"])
        assert weight.std().item() == pytest.approx(columns**-0.5, rel=0.05)
        assert abs(weight.mean().item()) < 4 * columns**-0.5 / math.sqrt(weight.numel())


def test_modules_that_the_engine_fuses_share_their_global_scales(tensors: Tensors) -> None:
    groups = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"))
    compared = 0
    for first, *rest in groups:
        for name in (name for name in tensors if name.endswith(f".{first}.weight_scale_2")):
            for scale in ("weight_scale_2", "input_scale"):
                mine = name.replace("weight_scale_2", scale)
                for other in rest:
                    assert torch.equal(tensors[mine], tensors[mine.replace(first, other)])
                    compared += 1
    assert compared > 0


def test_the_exclude_lists_name_exactly_what_is_not_quantised(folder: Path, tensors: Tensors) -> None:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    own = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert config["ignore"] == config["exclude_modules"] == own["exclude_modules"]
    assert (config["quant_method"], config["quant_algo"], config["group_size"]) == ("modelopt", "NVFP4", 16)
    for name, tensor in tensors.items():
        if is_linear(name, tensor):
            listed = any(fnmatch(module_of(name), pattern) for pattern in config["ignore"])
            assert listed == (tensor.dtype == torch.bfloat16), name


def test_qwen3_next_has_the_parts_of_its_big_brother(
    arch: Architecture, folder: Path, tensors: Tensors
) -> None:
    if arch.name != "qwen3_next":
        assert not any("linear_attn" in name or "mtp" in name for name in tensors)
        return
    names = set(tensors)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3NextForCausalLM"]
    assert config["full_attention_interval"] == 4
    assert {"model.layers.0.linear_attn.A_log", "model.layers.3.self_attn.q_proj.weight"} <= names
    assert {
        "model.layers.0.linear_attn.out_proj.weight_scale",
        "model.layers.3.self_attn.o_proj.weight_scale",
    } <= names
    assert "model.layers.0.mlp.shared_expert.down_proj.weight_scale" in names
    mtp = {name for name in names if name.startswith("mtp.")}
    assert {"mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.mlp.experts.0.up_proj.weight"} <= mtp
    assert not any("scale" in name for name in mtp)


def test_a_failure_leaves_nothing_behind(
    tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_checkpoint(tmp_path / "demo", tiny)
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_is_used(
    tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path / "demo")
    write_checkpoint(Path(), tiny)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == FILES


def test_an_empty_folder_is_used(tiny: Architecture, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    write_checkpoint(tmp_path / "demo", tiny)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == FILES
