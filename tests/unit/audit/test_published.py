"""Two published checkpoints, byte by byte: the headers are theirs, and what is added up of them is right."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from published import PUBLISHED, QWEN3_6, QWEN3_NEXT, Published, Spec, size, write

from gb10.audit import model as words
from gb10.audit.command import _checkpoint, _formats
from gb10.audit.fits import SPARKS, Fit, fits
from gb10.audit.model import Model, bytes_per_token, draft_bytes
from gb10.audit.reading import read_model
from gb10.audit.report import Audit
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Formats
from gb10.checkpoint.size import decoded_token_bytes

pytest.importorskip("vllm.version", reason="vLLM is not installed")

Read = tuple[Checkpoint, Formats, Model]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints' folders, with holes for weights."""
    top = tmp_path_factory.mktemp("published")
    return {name: write(top / name.replace("/", "--"), published) for name, published in PUBLISHED.items()}


@pytest.fixture(scope="module")
def read(folders: dict[str, Path]) -> dict[str, Read]:
    """What the audit reads of them."""
    found = {}
    for name, folder in folders.items():
        checkpoint = _checkpoint(str(folder), None)
        formats = _formats(checkpoint)
        found[name] = checkpoint, formats, read_model(checkpoint, formats)
    return found


NEXT_CLASSES = {
    # What others counted in the files of revision 8fb2682f: tensors and bytes of each class
    # (docs/expert-cache-next80-results.md of b12x, "Complete checkpoint and loader coverage").
    "routed experts": (r"mlp\.experts\.", 294_912, 43_487_133_696),
    "shared experts": (r"mlp\.shared_expert\.", 576, 84_935_808),
    "shared gates": (r"mlp\.shared_expert_gate\.", 48, 196_608),
    "routers": (r"mlp\.gate\.", 48, 100_663_296),
    "GDN": (r"\.linear_attn\.", 360, 1_993_619_232),
    "attention": (r"\.self_attn\.", 132, 509_620_416),
    "embedding and head": (r"^(model\.embed_tokens|lm_head)\.", 2, 1_244_659_712),
    "norms": (r"(layernorm|^model\.norm)\.", 97, 397_312),
}


def classified(specs: tuple[Spec, ...], table: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[int, int]]:
    """Tensors and bytes by class; each tensor must be in one of them."""
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for spec in specs:
        classes = [name for name, (pattern, *_) in table.items() if re.search(pattern, spec[0])]
        assert len(classes) == 1, spec
        found[classes[0]][0] += 1
        found[classes[0]][1] += size(spec)
    return {name: (count, total) for name, (count, total) in found.items()}


def test_qwen3_next_is_what_others_counted() -> None:
    specs = PUBLISHED[QWEN3_NEXT].tensors
    assert len(specs) == 297_728
    drafter = [spec for spec in specs if spec[0].startswith("mtp.")]
    assert len(drafter) == 1_553
    found = classified(tuple(spec for spec in specs if not spec[0].startswith("mtp.")), NEXT_CLASSES)
    assert found == {name: (count, total) for name, (_, count, total) in NEXT_CLASSES.items()}
    assert sum(total for _, total in found.values()) == 47_421_226_080
    # One layer of each kind, and the repository (24 files) beside its tensors: headers, index, tokenizer.
    assert sum(size(spec) for spec in specs if ".layers.0.linear_attn." in spec[0]) == 55_378_312
    assert 0 < 50_802_129_136 - sum(map(size, specs)) < 100 << 20


def test_qwen3_6_is_what_others_counted() -> None:
    """The registry of inference-atlas (quants/nvfp4-modelopt.json): revision 1355db6a."""
    published = PUBLISHED[QWEN3_6]
    tops = Counter(re.sub(r"^(model\.)?(\w+).*", r"\2", name) for name, _, _ in published.tensors)
    assert len(published.tensors) == 124_468
    assert (tops["visual"], tops["mtp"]) == (333, 19)
    listed = published.config["quantization_config"]["quantized_layers"]
    assert len(listed) == 291
    assert 0 < 23_462_482_761 - sum(map(size, published.tensors)) < 60 << 20


@pytest.fixture(scope="module")
def built(folders: dict[str, Path], registered: None) -> dict[str, dict[str, Any]]:
    """vLLM's own models, fed with the headers."""
    asked = {
        f"{name}{' drafter' if draft else ''}": [str(folder), draft]
        for name, folder in folders.items()
        for draft in (False, True)
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_model.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"},
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def of(published: Published, *, drafter: bool) -> int:
    """Bytes of the tensors that the model or its drafter reads."""
    shared = "embed_tokens", "lm_head"
    return sum(
        size(spec)
        for spec in published.tensors
        if spec[0].startswith("mtp.") == drafter or any(word in spec[0] for word in shared)
    )


DIFFERENCES = {
    # vLLM keeps A_log in F32. Scales of one number: four for the four parts of in_proj_qkvz, where the file
    # has two, and the unused input_scale of W4A16 in BF16.
    QWEN3_NEXT: 36 * 64,
    f"{QWEN3_NEXT} drafter": 8,
    QWEN3_6: 30 * 64 + 30 * 16 - 40 * 6 - 2,
    f"{QWEN3_6} drafter": -2,
}
"""By how many bytes vLLM's parameters are more than the tensors. The 8: scales for an FP8 cache, 4 x BF16."""


@pytest.mark.parametrize("name", DIFFERENCES)
def test_vllms_model_takes_each_tensor_and_misses_none(built: dict[str, dict[str, Any]], name: str) -> None:
    """Its loader refuses a name that it does not know; its parameters have the bytes of the headers."""
    found = built[name]
    assert "failed" not in found, found
    assert found["line"] is None
    published = PUBLISHED[name.removesuffix(" drafter")]
    expected = of(published, drafter=name.endswith(" drafter"))
    assert found["bytes"] - expected == DIFFERENCES[name]


def test_vllms_model_says_what_is_not_there(tmp_path: Path, registered: None) -> None:
    """The check above can fail: a tensor less, and one of another shape."""
    published = PUBLISHED[QWEN3_6]
    lacking = [spec for spec in published.tensors if not spec[0].endswith("layers.5.mlp.gate.weight")]
    changed = "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"
    wrong = [
        (name, kind, (4096, 2048) if name == changed else shape) for name, kind, shape in published.tensors
    ]
    asked = {
        name: [str(write(tmp_path / name, Published(published.config, tuple(specs)))), False]
        for name, specs in (("lacking", lacking), ("wrong", wrong))
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_model.py"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"},
        timeout=850,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert "layers.5.mlp.gate.weight" in str(found["lacking"])
    assert found["wrong"].get("line", "an error") is not None
    assert "size" in str(found["wrong"]) or "shape" in str(found["wrong"]), found["wrong"]


COMPONENTS: dict[str, tuple[str]] = {
    words.DRAFT: (r"^mtp\.",),
    words.TOWER: (r"^model\.visual\.",),
    words.EXPERTS: (r"^model\..*\.mlp\.experts\.",),
    words.SHARED: (r"^model\..*\.mlp\.shared_expert\.",),
    words.ROUTER: (r"^model\..*\.mlp\.(gate|shared_expert_gate)\.",),
    words.GDN_IN: (r"^model\..*\.linear_attn\.in_proj_",),
    words.GDN: (r"^model\..*\.linear_attn\.(?!in_proj_)",),
    words.ATTENTION: (r"^model\..*\.self_attn\.",),
    words.NORMS: (r"^model\.(language_model\.)?(norm|layers\.\d+\.\w+layernorm)\.",),
    words.HEAD: (r"^lm_head\.",),
    words.EMBEDDING: (r"^model\.(language_model\.)?embed_tokens\.",),
}
"""The components by the names alone; the audit knows nothing of this table."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_components_are_the_sums_over_the_headers(read: dict[str, Read], name: str) -> None:
    checkpoint, _, model = read[name]
    found = classified(PUBLISHED[name].tensors, COMPONENTS)
    assert {key: total for key, (_, total) in found.items()} == dict(model.stored)
    counts = Counter[str]()
    for part in model.parts:
        counts[part.component] += part.tensors
    assert {key: count for key, (count, _) in found.items()} == dict(counts)

    text = PUBLISHED[name].config.get("text_config", PUBLISHED[name].config)
    row = 2 * text["hidden_size"]
    experts = found[words.EXPERTS][1] * text["num_experts_per_tok"] // text["num_experts"]
    apart = (words.DRAFT, words.TOWER, words.EMBEDDING, words.EXPERTS)
    always = sum(total for key, (_, total) in found.items() if key not in apart)
    token = bytes_per_token(model)
    assert token.parts[words.EXPERTS] == experts
    assert token.parts[words.EMBEDDING] == row
    assert token.weights == always + experts + row
    # What `gb10 routing` says, which leaves the embedding's row out.
    assert token.weights == decoded_token_bytes(checkpoint.tensors, checkpoint.config) + row


def test_what_a_token_of_qwen3_next_reads(read: dict[str, Read]) -> None:
    """The figures of docs/engine.md and docs/requant.md, which were counted on an H200."""
    _, formats, model = read[QWEN3_NEXT]
    token = bytes_per_token(model)
    assert token.weights == 4_161_124_704
    shares = {name: token.parts[name] / token.weights for name in token.parts}
    assert round(shares[words.GDN_IN], 2) == 0.44
    assert round(shares[words.HEAD], 2) == 0.15
    assert round(shares[words.ATTENTION], 2) == 0.12
    assert round(shares[words.EXPERTS], 2) == 0.20
    assert token.parts[words.EXPERTS] == 849_358_080
    weights = {
        (dense, head): round(bytes_per_token(model.requantised(dense, head)).weights / 1e9, 2)
        for dense in ("keep", "fp8", "nvfp4")
        for head in ("keep", "fp8", "nvfp4")
    }
    assert weights["fp8", "keep"] == 3.03
    assert weights["fp8", "fp8"] == 2.72
    assert weights["nvfp4", "keep"] == 2.53
    assert weights["nvfp4", "nvfp4"] == 2.08
    # 36 states of 32 x 128 x 128 and 8192 x 3 values in BF16, read and written; a KV cache in E4M3.
    assert token.parts[words.STATE] == 2 * 36 * (32 * 128 * 128 + 8192 * 3) * 2
    assert (formats.method, model.kv_bits) == ("modelopt_fp4", 8)
    assert bytes_per_token(model, context=1024).parts[words.KV] == 1024 * 12_288
    assert sum(draft_bytes(model).values()) == 142_631_936 + 622_329_856


def test_what_a_token_of_qwen3_6_reads(read: dict[str, Read]) -> None:
    _, formats, model = read[QWEN3_6]
    token = bytes_per_token(model, context=8192)
    assert token.weights == 2_254_641_880
    # States in FP32 as the config says; the side file's FP8 cache is not read by vLLM.
    assert token.parts[words.STATE] == 2 * 30 * (32 * 128 * 128 * 4 + 8192 * 3 * 2)
    assert (formats.method, formats.kv_cache, model.kv_bits) == ("modelopt_mixed", "auto", 16)
    assert token.parts[words.KV] == 8192 * 10 * 2 * 2 * 256 * 2
    form = {part.name: part.format for part in model.parts}
    layer = "model.language_model.layers"
    assert form[f"{layer}.0.mlp.experts"] == form["lm_head"] == "nvfp4"
    assert form[f"{layer}.0.linear_attn.in_proj_qkv"] == form[f"{layer}.3.self_attn.o_proj"] == "fp8"
    assert form[f"{layer}.0.linear_attn.in_proj_a"] == form[f"{layer}.0.mlp.gate"] == "bf16"
    # All that is left in 16 bit of the dense side are the rows for a and b.
    small = bytes_per_token(model.requantised("fp8", "fp8"))
    assert token.weights - small.weights == 30 * 2 * 32 * (2048 - 4)


def test_several_sequences_of_qwen3_next(read: dict[str, Read]) -> None:
    """Four sequences of 512 experts were counted to take 26.6 (what `gb10 predict` stands on)."""
    audit = Audit(read[QWEN3_NEXT][2], 0, 233e9, ())
    one, four = audit.batch(1, "keep"), audit.batch(4, "keep")
    assert audit.distinct(1) == 10
    assert audit.distinct(4) == pytest.approx(26.6)
    experts = four.parts[words.EXPERTS]
    assert experts == pytest.approx(48 * 26.6 * 1_769_496, rel=1e-6)
    more = experts - one.parts[words.EXPERTS] + 3 * one.parts[words.STATE] + 3 * 4096
    assert four.step - one.step == more


def test_what_fits(read: dict[str, Read]) -> None:
    checkpoint, formats, model = read[QWEN3_NEXT]
    large, small = fits(model, checkpoint, formats, SPARKS)
    lengths = [8192, 16384, 32768, 65536, 131072, 262144]
    assert list(large.sequences) == lengths
    counts = [large.sequences[length] for length in lengths]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    # 80 % of 119.7 GiB less the weights in FP8 and 2 GiB, over 12 KiB a token and the states.
    room = int(128_526_123_008 * 0.8) - model.requantised("fp8", "fp8").weights - (2 << 30)
    assert counts[0] == room // model.cache.sequence(8192)
    assert small.sequences[8192] >= 1
    assert small.sequences[262144] == 0
    assert small.context < 262144
    tiny = fits(model, checkpoint, formats, {"32 GB": 32 << 30})
    assert isinstance(tiny[0], Fit)
    assert (tiny[0].context, set(tiny[0].sequences.values())) == (0, {0})
    assert "not enough memory" in tiny[0].refusal
