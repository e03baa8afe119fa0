"""Model folders: what is written is read back, and nothing half-written stays."""

import json
import stat
from pathlib import Path

import pytest
import torch
from gb10.errors import UserError
from gb10.files import replacing, write_json
from gb10_lab.testbed import checkpoint
from safetensors import safe_open
from small_model import SMALL, make_model, make_tokens, mixture


def test_written_and_read_back(tmp_path: Path) -> None:
    model = make_model(dtype=torch.float32)
    checkpoint.round_to_bf16(model)
    checkpoint.save(model, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    tokens = make_tokens(2, 30)
    with torch.no_grad():
        assert torch.equal(model.logits(model(tokens)), loaded.logits(loaded(tokens)))
    for name, tensor in checkpoint.to_tensors(model).items():
        assert torch.equal(tensor, checkpoint.to_tensors(loaded)[name]), name


def test_rounding_is_what_storing_does(tmp_path: Path) -> None:
    model = make_model(dtype=torch.float32)
    checkpoint.save(model, tmp_path)
    up = mixture(model, 0).experts.up
    before = up.clone()
    checkpoint.round_to_bf16(model)
    assert not torch.equal(before, up)
    assert torch.equal(mixture(checkpoint.load(tmp_path), 0).experts.up, up)


def test_form_of_the_files(tmp_path: Path) -> None:
    checkpoint.save(make_model(dtype=torch.float32), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        assert file.get_tensor("mtp.layers.0.mlp.experts.3.down_proj.weight").shape == (32, 16)
        assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in names)
    assert "model.layers.0.linear_attn.in_proj_qkvz.weight" in names
    assert "model.layers.2.self_attn.q_norm.weight" in names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3NextForCausalLM"]


def test_changed_tensors_change_the_model() -> None:
    model = make_model(dtype=torch.float32)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.to_tensors(model).items()}
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"] *= 1.5
    changed = checkpoint.from_tensors(SMALL, tensors)
    experts = mixture(model, 1).experts.up, mixture(changed, 1).experts.up
    assert torch.equal(experts[1][2], experts[0][2] * 1.5)
    assert torch.equal(experts[1][3], experts[0][3])


def test_wrong_tensors_are_refused() -> None:
    tensors = checkpoint.to_tensors(make_model(dtype=torch.float32))
    name = "model.layers.0.linear_attn.A_log"
    with pytest.raises(UserError, match=name):
        checkpoint.from_tensors(SMALL, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(UserError, match="extra"):
        checkpoint.from_tensors(SMALL, tensors | {"extra": torch.ones(1)})
    with pytest.raises(UserError, match=r"\[3\], not \[2\]"):
        checkpoint.from_tensors(SMALL, tensors | {name: torch.ones(3)})


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        checkpoint.load(tmp_path)
    checkpoint.save(make_model(dtype=torch.float32), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        checkpoint.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save(make_model(dtype=torch.float32), tmp_path / "file" / "below")


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    with pytest.raises(RuntimeError), replacing(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]
