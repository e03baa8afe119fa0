"""What headers must agree on: index and files, the parts of quantised weights, MTP's weights."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from gb10.checkpoint.folder import inspect
from gb10.checkpoint.headers import Tensor, read_header
from gb10.checkpoint.inventory import check_mtp, quantised_parts
from gb10.errors import UserError

Make = Callable[..., Path]

MODELOPT = {
    "a.weight": ("U8", (32, 24)),
    "a.weight_scale": ("F8_E4M3", (32, 3)),
    "a.weight_scale_2": ("F32", ()),
    "a.input_scale": ("F32", ()),
}
COMPRESSED = {
    "a.weight_packed": ("U8", (32, 24)),
    "a.weight_scale": ("F8_E4M3", (32, 3)),
    "a.weight_global_scale": ("F32", (1,)),
    "a.input_global_scale": ("F32", (1,)),
}
OTHERS = {
    # MXFP4 of llm-compressor, of Quark, and of gpt-oss, whose scales have a name of their own; experts in one
    # tensor, bitsandbytes, a plain layer with a scale.
    "m.weight_packed": ("U8", (32, 24)),
    "m.weight_scale": ("U8", (32, 2)),
    "q.weight": ("U8", (32, 32)),
    "q.weight_scale": ("U8", (32, 2)),
    "o.gate_up_proj_blocks": ("U8", (4, 32, 2, 16)),
    "o.gate_up_proj_scales": ("U8", (4, 32, 2)),
    "e.weight": ("U8", (4, 32, 24)),
    "e.weight_scale": ("F8_E4M3", (4, 32, 3)),
    "e.weight_scale_2": ("F32", (4, 2)),
    "b.weight": ("U8", (768, 1)),
    "b.weight.absmax": ("F32", (24,)),
    "f.weight": ("F8_E4M3", (32, 48)),
    "f.weight_scale": ("F32", (32, 1)),
    "f.input_scale": ("BF16", (1,)),
    "p.weight": ("BF16", (32, 48)),
}


def tensors(specs: dict[str, tuple[str, tuple[int, ...]]]) -> list[Tensor]:
    return [Tensor(name, dtype, shape, 0) for name, (dtype, shape) in specs.items()]


@pytest.mark.parametrize("specs", [MODELOPT, COMPRESSED, OTHERS])
def test_parts_that_fit(specs: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    assert quantised_parts(tensors(specs)) == []


@pytest.mark.parametrize(
    ("base", "changed", "message"),
    [
        (
            MODELOPT,
            {"a.weight_scale": ("F8_E4M3", (16, 3))},
            r"a.weight_scale has the shape \[16, 3\], but .* \[32, 3\]",
        ),
        (MODELOPT, {"a.weight_scale": ("F8_E4M3", (32, 6))}, r"a.weight_scale has the shape \[32, 6\]"),
        (MODELOPT, {"a.weight": ("U8", (32, 20))}, "rows of 40 values, which blocks of 16 do not divide"),
        (MODELOPT, {"a.weight": ("U8", (768,))}, "a.weight has the shape"),
        (
            MODELOPT,
            {"a.weight_scale_2": ("F32", (32,))},
            r"a.weight_scale_2 has the shape \[32\]; it must be one number",
        ),
        (MODELOPT, {"a.input_scale": ("U8", ())}, "a.input_scale is of type U8"),
        (MODELOPT, {"a.input_scale_2": ("U8", ())}, "a.input_scale_2 is of type U8"),
        (
            MODELOPT,
            {"a.weight_scale": ("U8", (32, 3))},
            "a.weight_scale is of type U8; the block scales of NVFP4 weights must be F8_E4M3",
        ),
        (MODELOPT, {"a.weight_scale": ("BF16", (32, 3))}, "a.weight_scale is of type BF16; the block"),
        (
            MODELOPT,
            {"a.weight": ("U8", (4, 32, 24)), "a.weight_scale": ("U8", (4, 32, 3))},
            "a.weight_scale is of type U8; the block",
        ),
        (COMPRESSED, {"a.weight_scale": ("U8", (32, 3))}, "a.weight_scale is of type U8; the block"),
        (COMPRESSED, {"a.weight_scale": ("F8_E4M3", (32, 1))}, r"needs \[32, 3\]"),
        (COMPRESSED, {"a.weight_global_scale": ("F32", (2,))}, "a.weight_global_scale has the shape"),
        (COMPRESSED, {"a.input_global_scale": ("U8", (1,))}, "a.input_global_scale is of type U8"),
    ],
)
def test_parts_that_do_not_fit(
    base: dict[str, tuple[str, tuple[int, ...]]],
    changed: dict[str, tuple[str, tuple[int, ...]]],
    message: str,
    make_checkpoint: Make,
) -> None:
    folder = make_checkpoint(tensors={**base, **changed})
    with pytest.raises(UserError, match=message) as caught:
        inspect(folder, "m")
    assert "\n" not in str(caught.value)


def with_index(folder: Path, weight_map: object) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_an_index_that_names_what_its_shard_lacks(make_checkpoint: Make) -> None:
    file = "model.safetensors"
    folder = with_index(make_checkpoint(), {"lm_head.weight": file, "model.norm.weight": file, "z": file})
    with pytest.raises(
        UserError, match=r"model.safetensors has no model.norm.weight and 1 more, which .* index"
    ):
        inspect(folder, "m")
    # A tensor in a file that the index names counts even if it is not listed itself: vLLM reads whole files.
    found = inspect(with_index(folder, {}), "m")
    assert [tensor.name for tensor in found.tensors] == []
    with_index(folder, {"lm_head.weight": file})
    assert [tensor.name for tensor in inspect(folder, "m").tensors] == ["lm_head.weight"]


def test_a_tensor_in_two_files_that_vllm_reads(make_checkpoint: Make) -> None:
    """vLLM would take the one of the file that it reads last, without a word."""
    head = {"lm_head.weight": ("BF16", (8, 64))}
    folder = make_checkpoint()
    stray = make_checkpoint("stray", tensors={**head, "a": ("F32", ())})
    (stray / "model.safetensors").rename(folder / "stray.safetensors")
    both = (
        r"has lm_head.weight in two files, model.safetensors and stray.safetensors, and vLLM reads both; take"
    )
    with pytest.raises(UserError, match=both):
        inspect(folder, "m")
    # The index places each of the two once; the other lm_head.weight comes along.
    with_index(folder, {"lm_head.weight": "model.safetensors", "a": "stray.safetensors"})
    with pytest.raises(UserError, match=both):
        inspect(folder, "m")
    with_index(folder, {"lm_head.weight": "model.safetensors"})
    assert [tensor.name for tensor in inspect(folder, "m").tensors] == ["lm_head.weight"]


def test_files_in_mistrals_own_format_are_read_alone(make_checkpoint: Make) -> None:
    """Repositories of Mistral's have their weights in both formats."""
    folder = with_index(make_checkpoint(), {"lm_head.weight": "model.safetensors"})
    mistral = make_checkpoint("mistral", tensors={"output.weight": ("BF16", (8, 64))})
    (mistral / "model.safetensors").rename(folder / "consolidated.safetensors")

    def names(load_format: str | None) -> list[str]:
        return [tensor.name for tensor in inspect(folder, "m", load_format=load_format).tensors]

    assert names(None) == names("auto") == names("mistral") == ["output.weight"]
    assert names("safetensors") == names("hf") == ["lm_head.weight"]
    (folder / "consolidated.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"output.weight": "consolidated-2.safetensors"}})
    )
    with pytest.raises(UserError, match=r"lacks consolidated-2.safetensors, which its index names"):
        inspect(folder, "m")


@pytest.mark.parametrize(
    "weight_map", [[], "x", {"a": 1}, {"a": {"b": "c"}}, {"a": "model.safetensors", "b": None}]
)
def test_an_index_of_other_types(make_checkpoint: Make, weight_map: object) -> None:
    folder = with_index(make_checkpoint(), weight_map)
    with pytest.raises(UserError, match=r"weights index .* fetch the checkpoint again") as caught:
        inspect(folder, "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": 1, "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": "2", "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": ["2"], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [[2]], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [True, 2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [3], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4, 8]},
        {"dtype": "BF16", "shape": [2], "data_offsets": {"a": 1}},
        {"dtype": "BF16", "shape": [2]},
        ["BF16", [2], [0, 4]],
        None,
    ],
)
def test_headers_of_other_types(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(UserError, match="damaged safetensors header"):
        read_header(path)


def header(folder: Path, text: str, size: int) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(size))
    return path


ENTRY = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f'{{"a":{ENTRY},"b":{ENTRY},"a":{ENTRY}}}', "a"),
        ('{"__metadata__":{},"__metadata__":{}}', "__metadata__"),
        ('{"a":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}}', "shape"),
    ],
)
def test_a_name_that_is_twice_in_a_header(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(UserError, match=f"has a header that names '{name}' twice; fetch it again"):
        read_header(header(tmp_path, text, 4))


def test_a_name_that_is_twice_in_an_index(make_checkpoint: Make) -> None:
    folder = with_index(make_checkpoint(), {})
    text = '{"weight_map": {"a": "model.safetensors", "a": "other.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"weights index .* names 'a' twice; fetch it again"):
        inspect(folder, "m")


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F4", [2, 4], 4),
        ("F6_E2M3", [4], 3),
        ("F8_E8M0", [4], 4),
        ("F8_E4M3FNUZ", [4], 4),
        ("C64", [2], 16),
    ],
)
def test_sizes_of_rare_types(tmp_path: Path, dtype: str, shape: list[int], size: int) -> None:
    text = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}})
    assert [tensor.size for tensor in read_header(header(tmp_path, text, size))] == [size]
    text = json.dumps({"a": {"dtype": dtype, "shape": [*shape, 2], "data_offsets": [0, size]}})
    with pytest.raises(UserError, match="damaged safetensors header"):
        read_header(header(tmp_path, text, size))


@pytest.mark.parametrize("dtype", ["I4", "U4", "C128", "bf16"])
def test_types_that_safetensors_does_not_have(tmp_path: Path, dtype: str) -> None:
    """The library refuses the whole file. Their bytes were counted once, as what the offsets said."""
    text = json.dumps({"a": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, 4]}})
    with pytest.raises(UserError, match=f"has 'a' of type '{dtype}', which safetensors does not have"):
        read_header(header(tmp_path, text, 4))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_deep_nesting(make_checkpoint: Make, file: str) -> None:
    folder = make_checkpoint()
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / file).write_bytes(struct.pack("<Q", len(text)) + text if file.endswith("tensors") else text)
    with pytest.raises(UserError, match=r"nested too deeply|damaged safetensors header") as caught:
        inspect(folder, "m")
    assert "\n" not in str(caught.value)


MTP = {"method": "mtp", "num_speculative_tokens": 2}


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("mtp.fc.weight", True),
        ("model.mtp.layers.0.x", True),
        ("model.mtp_layers.0.x", True),
        ("model.layers.2.eh_proj.weight", True),
        ("model.layers.1.mlp.x", False),
        ("model.layers.0.promtps.x", False),
    ],
)
def test_mtp_weights_are_known_by_name_or_layer(tmp_path: Path, name: str, there: bool) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    listed = tensors({"model.layers.0.a": ("BF16", (1,)), name: ("BF16", (1,))})
    if there:
        check_mtp(tmp_path, {"num_hidden_layers": 2}, listed, MTP)
        return
    with pytest.raises(UserError, match="has no MTP weights"):
        check_mtp(tmp_path, {"num_hidden_layers": 2}, listed, MTP)


def test_mtp_weights_in_a_file_that_the_index_does_not_name(make_checkpoint: Make) -> None:
    stray = make_checkpoint("stray", tensors={"mtp.fc.weight": ("BF16", (8, 64))}) / "model.safetensors"
    folder = make_checkpoint()
    stray.rename(folder / "mtp.safetensors")
    found = inspect(folder, "m")
    check_mtp(folder, found.text, found.tensors, MTP)
    with_index(folder, {"lm_head.weight": "model.safetensors"})
    found = inspect(folder, "m")
    with pytest.raises(
        UserError, match=r"its weights \(mtp.fc.weight\) in mtp.safetensors, which its index"
    ) as caught:
        check_mtp(folder, found.text, found.tensors, MTP)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "speculative",
    [
        {"method": "ngram"},
        {"method": "mtp", "model": "another"},
        {"num_speculative_tokens": 2},
        {"method": "eagle3"},
    ],
)
def test_other_drafts_need_no_mtp_weights(tmp_path: Path, speculative: dict[str, object]) -> None:
    check_mtp(tmp_path, {}, tensors({"a": ("BF16", (1,))}), speculative)
