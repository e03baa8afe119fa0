"""The audit of small models in each format, its text, JSON and plot, and what it refuses."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from published import Published, Spec, size, write

from gb10 import cli
from gb10.audit import model as words
from gb10.audit.command import _checkpoint, _formats
from gb10.audit.model import Model, Part, bytes_per_token, draft_bytes
from gb10.audit.reading import read_model
from gb10.audit.state import layer_state
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.size import CacheShape

pytest.importorskip("vllm.version", reason="vLLM is not installed")

HIDDEN, INNER, VOCABULARY = 256, 512, 1024
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
MATRICES = {
    "self_attn.q_proj": (256, HIDDEN),
    "self_attn.k_proj": (128, HIDDEN),
    "self_attn.v_proj": (128, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 256),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
FOUR = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
EIGHT = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}


def bf16(name: str, rows: int, columns: int) -> Iterator[Spec]:
    yield f"{name}.weight", "BF16", (rows, columns)


def packed(name: str, rows: int, columns: int) -> Iterator[Spec]:
    """NVFP4 as compressed-tensors writes it."""
    yield f"{name}.weight_packed", "U8", (rows, columns // 2)
    yield f"{name}.weight_scale", "F8_E4M3", (rows, columns // 16)
    yield f"{name}.weight_global_scale", "F32", (1,)
    yield f"{name}.input_global_scale", "F32", (1,)


def channels(name: str, rows: int, columns: int) -> Iterator[Spec]:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale", "BF16", (rows, 1)


def blocks(name: str, rows: int, columns: int) -> Iterator[Spec]:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", "BF16", (-(-rows // 128), -(-columns // 128))


def qwen3(matrix: Any, *, head: bool = True) -> tuple[Spec, ...]:
    found: list[Spec] = [*bf16("model.embed_tokens", VOCABULARY, HIDDEN)]
    for layer in range(2):
        for name, shape in MATRICES.items():
            found += matrix(f"model.layers.{layer}.{name}", *shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found.append((f"model.layers.{layer}.{norm}.weight", "BF16", (HIDDEN,)))
    found.append(("model.norm.weight", "BF16", (HIDDEN,)))
    return *found, *(bf16("lm_head", VOCABULARY, HIDDEN) if head else ())


def compressed(**groups: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "mixed-precision" if len(groups) > 1 else next(iter(groups.values()))["format"],
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


def group(form: str, weights: Any, inputs: Any, *targets: str) -> dict[str, Any]:
    return {"format": form, "weights": weights, "input_activations": inputs, "targets": list(targets)}


NVFP4_GROUP = group("nvfp4-pack-quantized", FOUR | {"dynamic": False}, FOUR | {"dynamic": "local"}, "Linear")
GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16384,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
}


def gpt_oss() -> tuple[Spec, ...]:
    """The experts of a layer in two stacked tensors with scales, and biases."""
    found: list[Spec] = [*bf16("model.embed_tokens", VOCABULARY, HIDDEN)]
    for layer in range(2):
        stem = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            rows, columns = MATRICES[f"self_attn.{name}"]
            found += bf16(f"{stem}.self_attn.{name}", rows, columns)
            found.append((f"{stem}.self_attn.{name}.bias", "BF16", (rows,)))
        found.append((f"{stem}.self_attn.sinks", "BF16", (4,)))
        for name, rows in (("gate_up_proj", 2 * HIDDEN), ("down_proj", HIDDEN)):
            found.append((f"{stem}.mlp.experts.{name}_blocks", "U8", (8, rows, HIDDEN // 32, 16)))
            found.append((f"{stem}.mlp.experts.{name}_scales", "U8", (8, rows, HIDDEN // 32)))
            found.append((f"{stem}.mlp.experts.{name}_bias", "BF16", (8, rows)))
        found += bf16(f"{stem}.mlp.router", 8, HIDDEN)
        found.append((f"{stem}.mlp.router.bias", "BF16", (8,)))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found.append((f"{stem}.{norm}.weight", "BF16", (HIDDEN,)))
    found.append(("model.norm.weight", "BF16", (HIDDEN,)))
    return *found, *bf16("lm_head", VOCABULARY, HIDDEN)


SMALL = {
    "plain": (Published(QWEN3, qwen3(bf16)), "", {"bf16"}, "not quantised"),
    "compressed": (
        Published(QWEN3 | {"quantization_config": compressed(group_0=NVFP4_GROUP)}, qwen3(packed)),
        "compressed-tensors",
        {"nvfp4"},
        "compressed-tensors",
    ),
    "channels": (
        Published(
            QWEN3
            | {
                "quantization_config": compressed(
                    group_0=group("float-quantized", EIGHT, TOKEN, "Linear"),
                )
            },
            qwen3(channels),
        ),
        "compressed-tensors",
        {"fp8_channel"},
        "compressed-tensors",
    ),
    "blocks": (
        Published(
            QWEN3
            | {
                "quantization_config": {
                    "quant_method": "fp8",
                    "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128],
                    "modules_to_not_convert": ["lm_head"],
                }
            },
            qwen3(blocks),
        ),
        "fp8",
        {"fp8_block"},
        "FP8",
    ),
    "mxfp4": (Published(GPT_OSS, gpt_oss()), "gpt_oss_mxfp4", {"mxfp4"}, "MXFP4"),
}


def audited(folder: Path) -> Model:
    checkpoint = _checkpoint(str(folder), None)
    return read_model(checkpoint, _formats(checkpoint))


@pytest.mark.parametrize("name", SMALL)
def test_formats_are_found_and_bytes_are_exact(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    published, method, forms, label = SMALL[name]
    folder = write(tmp_path / name, published)
    model = audited(folder)
    assert model.method == method
    matrices = model.of(words.ATTENTION, words.MLP) if name != "mxfp4" else model.of(words.EXPERTS)
    assert {part.format for part in matrices if part.shape or part.experts} == forms
    embedding = VOCABULARY * HIDDEN * 2
    assert model.stored[words.EMBEDDING] == model.stored[words.HEAD] == embedding
    assert sum(model.stored.values()) == sum(map(size, published.tensors))
    experts = sum(size(spec) for spec in published.tensors if ".experts." in spec[0])
    read = sum(map(size, published.tensors)) - embedding - experts + experts * 2 // 8 + HIDDEN * 2
    token = bytes_per_token(model)
    assert token.weights == read

    assert cli.main(["audit", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines()), printed
    assert f"\n{label}: {len(published.tensors)} tensors" in printed
    assert cli.main(["audit", str(folder), "--json", "--context", "1000", "--memory", "32G"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_read"] == read == sum(part["read"] for part in found["components"])
    per_token = 2 * 2 * 64 * 2
    full, window = (2, 0) if name != "mxfp4" else (1, 128)
    assert found["kv_cache_read"] == per_token * (full * 1000 + window)
    assert found["read"] == found["weights_read"] + found["kv_cache_read"]
    choices = {(one["dense"], one["head"]): one["weights_read"] for one in found["choices"]}
    # A head becomes rows in FP8 with a float32 each, or blocks of 16 with a scale; a plain model stays.
    saved = 0 if name == "plain" else embedding - (VOCABULARY * HIDDEN + VOCABULARY * 4)
    assert choices["keep", "keep"] - choices["keep", "fp8"] == saved
    saved = 0 if name == "plain" else embedding - (VOCABULARY * HIDDEN * 9 // 16 + 4)
    assert choices["keep", "keep"] - choices["keep", "nvfp4"] == saved
    assert [one["sequences"] for one in found["batches"][:5]] == [1, 2, 4, 8, 16]
    assert found["batches"][0]["read"] == found["read"]
    # What all sequences share is read once; of 8 experts 16 sequences take most.
    sixteen = found["batches"][4]["read"] - 16 * found["kv_cache_read"]
    rows = 15 * HIDDEN * 2
    most = read + (experts - experts * 2 // 8) + rows
    assert sixteen == read + rows if not experts else read + rows < sixteen <= most
    assert found["fits"][0]["name"] == "32G"
    assert found["fits"][0]["sequences"]["8192"] > 1000


def test_a_tied_embedding_is_the_head(tmp_path: Path) -> None:
    published = Published(QWEN3 | {"tie_word_embeddings": True}, qwen3(bf16, head=False))
    model = audited(write(tmp_path / "tied", published))
    assert words.EMBEDDING not in model.stored
    assert bytes_per_token(model).weights == sum(map(size, published.tensors))


def test_a_state_is_what_vllms_class_of_the_model_says(tmp_path: Path) -> None:
    """Nemotron-H: the convolution in the model's type, the recurrence in FP32; a plain model has none."""
    config = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "hybrid_override_pattern": "M-M*M-M*",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_num_heads": 8,
        "mamba_head_dim": 64,
        "n_groups": 2,
        "ssm_state_size": 32,
        "conv_kernel": 4,
        "vocab_size": VOCABULARY,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    convolution = (8 * 64 + 2 * 2 * 32) * 3 * 2
    assert layer_state(Checkpoint("m", tmp_path, config), "bfloat16") == convolution + 8 * 64 * 32 * 4
    assert layer_state(Checkpoint("m", config=QWEN3), "bfloat16") is None


MOE = Model(
    "m",
    "M",
    "",
    (
        Part("layers.0.experts", words.EXPERTS, "nvfp4", 512 * 100, experts=512),
        Part("layers.0.gate", words.ROUTER, "bf16", 70),
        Part("embed", words.EMBEDDING, "bf16", 1000, shape=(100, 5)),
        Part("lm_head", words.HEAD, "bf16", 900, side=words.HEAD_SIDE, fp8=500, nvfp4=300),
        Part("mtp.experts", words.DRAFT, "bf16", 512 * 20, experts=512),
        Part("visual", words.TOWER, "bf16", 10**6),
    ),
    experts=512,
    chosen=10,
    context=4096,
    kv_bits=8,
    cache=CacheShape(per_token=3, per_sequence=0, per_window_token=2, window=10),
    state=40,
    recurrent=1,
)


def test_several_sequences_share_what_they_read_alike() -> None:
    one = bytes_per_token(MOE, context=100)
    assert dict(one.parts) == {
        words.ROUTER: 70,
        words.EXPERTS: 1000,
        words.HEAD: 900,
        words.EMBEDDING: 10,
        words.STATE: 80,
        words.KV: 320,
    }
    four = bytes_per_token(MOE, 4, 26.6, context=100)
    assert four.parts[words.EXPERTS] == 2660
    assert (four.parts[words.ROUTER], four.parts[words.EMBEDDING]) == (70, 40)
    assert (four.parts[words.STATE], four.parts[words.KV]) == (320, 1280)
    assert four.per_token == four.step / 4
    assert one.floor(2380.0) == 1.0
    small = bytes_per_token(MOE.requantised(head="nvfp4"))
    assert small.parts[words.HEAD] == 300
    assert dict(draft_bytes(MOE)) == {words.DRAFT: 200, words.HEAD: 900}


@pytest.mark.parametrize(("batch", "distinct"), [(2, None), (1, 9.0), (2, 20.5), (60, 513.0)])
def test_distinct_experts_that_cannot_be(batch: int, distinct: float | None) -> None:
    with pytest.raises(ValueError, match="sequences"):
        bytes_per_token(MOE, batch, distinct)


def test_the_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = write(tmp_path / "compressed", SMALL["compressed"][0])
    plots = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for plot in plots:
        assert cli.main(["audit", str(folder), "--plot", str(plot)]) == 0
    assert plots[0].read_bytes() == plots[1].read_bytes()
    drawn = plots[0].read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for name in (words.ATTENTION, words.MLP, words.HEAD, words.KV, "compressed"):
        assert f"<!-- {name} -->" in drawn
    capsys.readouterr()
    assert cli.main(["audit", str(folder), "--plot", str(tmp_path / "three.png")]) == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert cli.main(["audit", str(folder), "--plot", str(tmp_path / "four.svg")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("three.png is not named .svg")
    assert "needs matplotlib" in said[1]
    assert not list(tmp_path.glob("[tf]*r*g"))


def test_a_model_of_short_contexts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "short", Published(QWEN3 | {"max_position_embeddings": 2048}, qwen3(bf16)))
    assert cli.main(["audit", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["context"] == 2048
    assert [list(fit["sequences"]) for fit in found["fits"]] == [["2048"]] * 2


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["audit", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("gb10: error: ")
    return err


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(capsys, str(tmp_path / "empty"))
    assert "does not exist" in refused(capsys, str(tmp_path / "no such"))
    (tmp_path / "file").write_text("{}")
    assert "is a file; give the folder" in refused(capsys, str(tmp_path / "file"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(QWEN3))
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    assert "has no safetensors files (it has pytorch_model.bin)" in refused(capsys, str(pickled))
    other = write(
        tmp_path / "other", Published(QWEN3 | {"architectures": ["NoSuchForCausalLM"]}, qwen3(bf16))
    )
    assert "names the architecture NoSuchForCausalLM, which vLLM" in refused(capsys, str(other))
    torn = write(tmp_path / "torn", SMALL["plain"][0])
    file = torn / "model-00002-of-00003.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(100)
    assert f"{file} is not a safetensors file; was its download cut short?" in refused(capsys, str(torn))
    file.unlink()
    assert f"lacks {file.name}, which its index names" in refused(capsys, str(torn))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_experts_per_tok", value) for value in (0, 9, -2, 2.5, True, "2")),
        *(("num_hidden_layers", value) for value in (0, "two", 1e400, None, 10**9)),
        ("num_key_value_heads", -1),
        ("head_dim", "64"),
    ],
)
def test_a_count_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    """Each of these gave figures once, of something else."""
    folder = write(tmp_path / "odd", Published(GPT_OSS | {key: value}, gpt_oss()))
    assert f"has {key} {value}, " in refused(capsys, str(folder))


@pytest.mark.parametrize("config", [GPT_OSS | {"num_experts_per_tok": None}, {**GPT_OSS}])
def test_experts_that_nobody_says_how_many_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any]
) -> None:
    """All experts were counted for each token."""
    if config["num_experts_per_tok"] is not None:
        del config["num_experts_per_tok"]
    folder = write(tmp_path / "odd", Published(config, gpt_oss()))
    assert "has 8 experts and does not say how many of them a token takes" in refused(capsys, str(folder))


def test_options_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write(tmp_path / "plain", SMALL["plain"][0]))
    assert "plain takes at most 40960 tokens" in refused(capsys, folder, "--context", "40961")
    assert "is not a whole number" in refused(capsys, folder, "--context", "-1")
    assert "--bandwidth '0' is not a number above 0" in refused(capsys, folder, "--bandwidth", "0")
    assert "--memory '12' is not a size of 1G or more" in refused(capsys, folder, "--memory", "12")
    assert "--revision is for models of the hub" in refused(capsys, folder, "--revision", "main")
    assert "Missing argument 'MODEL'" in refused(capsys)


@pytest.mark.parametrize(
    ("scaling", "tokens"),
    [
        (None, 40960),
        ({"rope_type": "linear", "factor": 2.0}, 81920),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 40960),
    ],
)
def test_the_longest_context_is_vllms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scaling: dict[str, Any] | None, tokens: int
) -> None:
    """vLLM 0.32.0 multiplies by the factor of linear scaling, and not by YaRN's."""
    tensors = (*bf16("model.embed_tokens", VOCABULARY, HIDDEN), *bf16("lm_head", VOCABULARY, HIDDEN))
    config = QWEN3 | ({"rope_scaling": scaling} if scaling else {})
    folder = str(write(tmp_path / "scaled", Published(config, tensors)))
    for command in ("audit", "predict"):
        assert cli.main([command, folder, "--context", str(tokens)]) == 0
        capsys.readouterr()
        assert cli.main([command, folder, "--context", str(tokens + 1)]) == 2
        assert f"takes at most {tokens} tokens; give less" in capsys.readouterr().err
