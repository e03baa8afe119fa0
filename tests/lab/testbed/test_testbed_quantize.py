"""Post-training quantisation: the same bytes everywhere, ModelOpt's names, what is refused."""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gb10.checkpoint import modelopt
from gb10.errors import UserError
from gb10.nvfp4 import dequantize
from gb10.nvfp4 import quantize as nvfp4_quantize
from gb10_lab.cli import main
from gb10_lab.testbed import quantize

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tiny_checkpoint as tiny

FILES = {
    "config.json": "1cd2f43b0691d77bf99019052e22114d5ef2f7e6a8ab8cfac052da1879ac9433",
    "generation_config.json": "bc33bcff1219c8b5477555d558ce07be839cb85b908a911a64d024cefdb4cc6d",
    "hf_quant_config.json": "3eb5d50ce5ca9509c86c81a7e83a4ec46c0f949011512bf74095c38a398882a5",
    "model.safetensors": "bb8eda632e88ca5a131b3188ecd1ad5fb83dd673f555cd0cd5cc1b467ab63c7d",
    "tokenizer.json": "4efec01995077a4e5d673a390697bdf5275e6c787252e0044c87ca1f7e53cd2e",
    "tokenizer_config.json": "a2e91ee477ea414218c4bc2ebfc43379d84a8bd2a8acf97d9453d41f06741c24",
}
"""File name -> SHA-256. Computed once: every machine must give these bytes."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("testbed") / "bf16")


@pytest.fixture(scope="module")
def made(model: Path) -> Path:
    out = model.parent / "nvfp4"
    quantize.quantize_checkpoint(model, out)
    return out


@pytest.fixture(scope="module")
def tensors(made: Path) -> tiny.Tensors:
    loaded: tiny.Tensors = load_file(made / "model.safetensors")
    return loaded


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def test_golden_bytes(made: Path) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.iterdir()}
    assert found == FILES


SEARCHED = "ec7b345b7d1b56790e7ec9ef1f27fb045ab12f38f16e8da6038bdaee5223facf"
"""SHA-256 of model.safetensors with searched block scales, computed once."""


def test_searched_scales_are_nearer_and_the_same_everywhere(
    model: Path, tensors: tiny.Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "searched"
    assert main(["quantize", "--model", str(model), "--out", str(out), "--scales", "search"]) == 0
    assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() == SEARCHED
    searched, source = load_file(out / "model.safetensors"), load_file(model / "model.safetensors")
    assert searched.keys() == tensors.keys()
    packed = [name for name in tensors if f"{name}_scale" in tensors]
    assert packed
    for name in packed:
        assert torch.equal(searched[f"{name}_scale_2"], tensors[f"{name}_scale_2"])
        before, after = (
            float((_values(stored, name) - source[name].float()).norm()) for stored in (tensors, searched)
        )
        assert after < 0.95 * before


def _values(stored: tiny.Tensors, name: str) -> torch.Tensor:
    return dequantize(stored[name], stored[f"{name}_scale"], stored[f"{name}_scale_2"])


def test_one_larger_weight_changes_its_own_expert_only(model: Path) -> None:
    """The control of the test above: it can see one number among thousands."""
    changed = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.experts.1.up_proj.weight"
    before = quantize.quantize_tensors(changed, tiny.amax(), modelopt.AS_SHIPPED)
    flat = changed[name].view(-1)
    flat[int(flat.abs().argmax())] *= 4
    after = quantize.quantize_tensors(changed, tiny.amax(), modelopt.AS_SHIPPED)
    different = {each for each in before if bits(before[each]) != bits(after[each])}
    assert f"{name}_scale_2" in different
    assert all(re.search(r"layers\.1\.mlp\.experts\.1\.(gate|up)_proj", each) for each in different)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_threads_changes_nothing(count: int, model: Path, tensors: tiny.Tensors) -> None:
    torch.set_num_threads(count)
    again = quantize.quantize_tensors(
        load_file(model / "model.safetensors"), tiny.amax(), modelopt.AS_SHIPPED
    )
    assert again.keys() == tensors.keys()
    for name, tensor in again.items():
        assert bits(tensor) == bits(tensors[name]), name


@pytest.mark.usefixtures("threads")
def test_parts_and_threads_give_the_bits_of_the_whole() -> None:
    """Large enough for torch to share the work between threads, in parts that end inside its vectors."""
    weight = tiny.weight("large", (521, 1008))
    scale = 0.0013
    torch.set_num_threads(1)
    whole = nvfp4_quantize(weight, scale)
    torch.set_num_threads(2)
    threaded = nvfp4_quantize(weight, scale)
    rows = [nvfp4_quantize(part, scale) for part in weight.split(17)]
    columns = [nvfp4_quantize(part, scale) for part in weight.split(48, dim=1)]
    for field in ("packed", "block_scales"):
        wanted = bits(getattr(whole, field))
        assert bits(getattr(threaded, field)) == wanted
        by_row = [getattr(part, field).view(torch.uint8) for part in rows]
        assert bits(torch.cat(by_row)) == wanted
        by_column = [getattr(part, field).view(torch.uint8) for part in columns]
        assert bits(torch.cat(by_column, dim=1)) == wanted


@pytest.mark.parametrize("instructions", ["default", "avx2", "avx512"])
def test_other_vector_instructions_give_the_same_bytes(
    instructions: str, model: Path, made: Path, tmp_path: Path
) -> None:
    """Torch picks its kernels by processor. A wider set than the machine has is ignored."""
    program = (
        "import sys; from pathlib import Path; from gb10_lab.testbed.quantize import quantize_checkpoint as q"
    )
    subprocess.run(
        [sys.executable, "-c", f"{program}; q(*map(Path, sys.argv[1:]))", model, tmp_path / "out"],
        env=os.environ | {"ATEN_CPU_CAPABILITY": instructions},
        timeout=120,
        check=True,
    )
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes(), name


def test_exactly_the_modules_that_nvidia_leaves_out_stay_bf16(model: Path, tensors: tiny.Tensors) -> None:
    quantised = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    experts = {
        f"model.layers.{layer}.mlp.{expert}.{name}_proj"
        for layer in (0, 1)
        for expert in ("experts.0", "experts.1", "shared_expert")
        for name in ("gate", "up", "down")
    }
    assert quantised == experts | {
        "model.layers.0.linear_attn.out_proj",
        "model.layers.1.self_attn.o_proj",
    }
    original = load_file(model / "model.safetensors")
    for name, tensor in original.items():
        if name.removesuffix(".weight") not in quantised:
            assert tensors[name].dtype == torch.bfloat16
            assert bits(tensors[name]) == bits(tensor), name


def test_quantised_weights_stand_for_the_original_ones(model: Path, tensors: tiny.Tensors) -> None:
    original = load_file(model / "model.safetensors")
    modules = [name.removesuffix("_scale") for name in tensors if name.endswith(".weight_scale")]
    for name in modules:
        packed, scales = tensors[name], tensors[f"{name}_scale"]
        assert (packed.dtype, scales.dtype) == (torch.uint8, torch.float8_e4m3fn)
        weight = original[name].float()
        assert packed.shape == (weight.shape[0], weight.shape[1] // 2)
        assert scales.shape == (weight.shape[0], weight.shape[1] // 16)
        error = (dequantize(packed, scales, tensors[f"{name}_scale_2"]) - weight).abs()
        # Half the widest step of E2M1, 4 to 6, and the rounding of the block scale.
        largest = weight.abs().unflatten(1, (-1, 16)).amax(-1, keepdim=True)
        assert bool((error.unflatten(1, (-1, 16)) <= largest * (1 / 6 + 1 / 16)).all()), name
        assert float(error.max()) > 0


def test_layers_that_the_engine_fuses_share_their_scales(model: Path) -> None:
    """With nothing left out: q, k and v too."""
    amax = tiny.amax() | {site.replace("model.layers.1", "mtp.layers.0"): 3.0 for site in tiny.SITES}
    made = quantize.quantize_tensors(
        {
            name: tensor
            for name, tensor in load_file(model / "model.safetensors").items()
            if "mtp." not in name
        },
        amax,
        ("model.layers.*.mlp.gate", "model.layers.*.shared_expert_gate"),
    )
    groups = [
        [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"],
        *(
            [f"model.layers.0.mlp.{expert}.{name}_proj" for name in ("gate", "up")]
            for expert in ("experts.0", "experts.1", "shared_expert")
        ),
    ]
    original = load_file(model / "model.safetensors")
    for group in groups:
        largest = max(float(original[f"{module}.weight"].abs().max()) for module in group)
        for module in group:
            assert made[f"{module}.weight_scale_2"].item() == (torch.tensor(largest) / 2688).item()
    own = {made[f"{group[0]}.weight_scale_2"].item() for group in groups}
    assert len(own) > 1


def test_input_scales_are_the_calibrated_ones(tensors: tiny.Tensors) -> None:
    amax = tiny.amax()
    seen = set()
    for name, tensor in tensors.items():
        if name.endswith(".input_scale"):
            assert (tensor.dtype, tensor.shape) == (torch.float32, ())
            site = re.sub(r"experts\.\d", "experts", name.removesuffix(".input_scale"))
            site = re.sub(r"(gate|up)_proj$", "gate_up_proj", site)
            assert tensor.item() == (torch.tensor(amax[site], dtype=torch.float32) / 2688).item(), name
            seen.add(site)
    assert seen == {site for site in tiny.SITES if not re.search("in_proj|qkv_proj|lm_head", site)}


def test_both_configuration_files_name_what_is_left_out(model: Path, made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    section = config.pop("quantization_config")
    assert config == json.loads((model / "config.json").read_text())
    own = json.loads((made / "hf_quant_config.json").read_text())["quantization"]
    assert section["ignore"] == section["exclude_modules"] == own["exclude_modules"]
    assert section["ignore"] == list(modelopt.AS_SHIPPED)
    assert (section["quant_method"], section["quant_algo"], section["group_size"]) == (
        "modelopt",
        "NVFP4",
        16,
    )
    assert (own["quant_algo"], own["kv_cache_quant_algo"]) == ("NVFP4", None)


def test_files_can_be_read_by_everyone(model: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        quantize.quantize_checkpoint(model, tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


def refused(model: Path, out: Path, match: str) -> None:
    """It is refused in one line, and nothing is left beside `out`."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError, match=match) as caught:
        quantize.quantize_checkpoint(model, out)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


def test_a_site_that_was_not_calibrated(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "bf16")
    amax = tiny.amax()
    del amax["model.layers.1.mlp.experts.down_proj"]
    (model / "calibration.json").write_text(json.dumps({"tokens": 64, "amax": amax}))
    refused(model, tmp_path / "out", r"no amax of model\.layers\.1\.mlp\.experts\.down_proj")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "2", None])
def test_an_amax_that_is_no_positive_number(value: object, tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "bf16")
    content = {"tokens": 64, "amax": tiny.amax() | {"lm_head": value}}
    (model / "calibration.json").write_text(json.dumps(content))
    refused(model, tmp_path / "out", "amax of lm_head is .*, not a positive number")


@pytest.mark.parametrize("name", ["config.json", "calibration.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "bf16")
    (model / name).unlink()
    refused(model, tmp_path / "out", re.escape(name))


@pytest.mark.parametrize("name", ["config.json", "calibration.json", "model.safetensors"])
def test_a_file_that_is_cut_short(name: str, tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "bf16")
    whole = (model / name).read_bytes()
    (model / name).write_bytes(whole[: len(whole) // 2])
    refused(model, tmp_path / "out", re.escape(name))


def test_a_checkpoint_that_is_quantised_already(made: Path, tmp_path: Path) -> None:
    refused(made, tmp_path / "out", "quantised already")


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "bf16")
    tensors = tiny.tensors()
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors")
    refused(model, tmp_path / "out", r"model\.layers\.1\.self_attn\.o_proj\.weight cannot be NVFP4: .*NaN")


def test_a_disk_that_is_full(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize, "save_file", full)
    refused(model, tmp_path / "out", "No space left on device")


def test_folders_and_links_in_the_way(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("dear")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        refused(model, tmp_path / name, "not an empty folder")
    refused(model, Path("/proc/gb10-demo"), "cannot write to /proc")
    with pytest.raises(UserError, match="cannot write to"):
        quantize.quantize_checkpoint(model, tmp_path / "file" / "out")
    assert (tmp_path / "full" / "mine").read_text() == "dear"


def test_the_command(model: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into an empty folder, which is replaced."""
    out = tmp_path / "out"
    out.mkdir()
    assert main(["quantize", "--model", str(model), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert (out / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert re.search(r"20 modules in NVFP4", capsys.readouterr().out)


def test_the_command_line_in_a_process_of_its_own(model: Path, tmp_path: Path) -> None:
    """It imports neither vLLM nor transformers, and bad input is one line and exit code 2."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "gb10_lab",
        "quantize",
        "--model",
        str(model),
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "safetensors"} <= imported
    assert not imported & {"vllm", "transformers", "huggingface_hub", "requests", "httpx"}
    again = subprocess.run(
        [command[0], *command[3:], "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("gb10: error: ")
    assert again.stderr.count("\n") == 1
    assert "not an empty folder" in again.stderr
