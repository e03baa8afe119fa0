"""Model families and forms of checkpoint on the CPU engine: each serves the tokens of the form it is made of.

A form holds the same numbers as another one (tests/reference/forms.py), so what is served is the same to the
last bit, whatever the arithmetic; that arithmetic is compared with a float32 reference, here and in
test_numerics.py. One process per NVFP4 mode serves all forms, one engine after the other.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference import forms
from reference.checkpoint import Checkpoint
from reference.compare import Served, compare
from reference.forked import serve_tokens
from reference.forms import Form
from reference.model import Model
from reference.random_moe import UNQUANTIZED, write_random_dense, write_random_moe
from tokenizers import Tokenizer

from gb10.vllm_plugin.cpu.mode import ENV_NAME
from gb10_lab.testbed.quantize import quantize_checkpoint

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

MODES = ("dequant", "packed", "emulate")
FAMILIES = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_moe")
FORMS = ("modelopt", "compressed", "compressed_weight_only")
MAX_TOKENS = 16

# As in test_numerics.py.
LOGPROB_TOLERANCE = 1e-4
BF16_MEAN_DIFFERENCE = 0.04
BF16_TOP_SAME = 0.95
# The tied model's logits spread twice as far (6.9 where the trained head has 3.4), and so do their errors.
TIED_MEAN_DIFFERENCE = 2 * BF16_MEAN_DIFFERENCE
# FP8 on top: 4 bits of mantissa for weights and inputs of the layers that have it.
FP8_MEAN_DIFFERENCE = 0.08
FP8_TOP_SAME = 0.9

TEXTS = (
    "import os\nimport sys\n\ndef main(argv):\n    parser = argparse.",
    "class Node:\n    def __init__(self, value, parent=None):\n        self.",
    "A block scale covers sixteen values of a row.",
)

MTP = {"method": "mtp", "num_speculative_tokens": 2}


@pytest.fixture(scope="module")
def prompts(testbed: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(testbed / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.fixture(scope="module")
def plain(testbed: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Form]:
    """ModelOpt's form of each family."""
    folder = tmp_path_factory.mktemp("families")
    for name, write in (("qwen3", write_random_dense), ("qwen3_moe", write_random_moe)):
        write(folder / f"{name}_bf16", testbed)
        quantize_checkpoint(folder / f"{name}_bf16", folder / name, UNQUANTIZED)
    made = {
        name: forms.with_exact_reciprocals(Form.read(place))
        for name, place in (
            ("qwen3", folder / "qwen3"),
            ("qwen3_moe", folder / "qwen3_moe"),
            ("qwen3_next", demo_model),
        )
    }
    return made | {"qwen3_5_moe": forms.qwen3_5_moe(made["qwen3_next"])}


@pytest.fixture(scope="module")
def folders(
    plain: dict[str, Form], testbed: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Each family in each form."""
    folder = tmp_path_factory.mktemp("forms")
    return {
        (family, form): make.write(folder / f"{family}-{form}", testbed)
        for family in FAMILIES
        for form, make in (
            ("modelopt", plain[family]),
            ("compressed", forms.compressed_tensors(plain[family])),
            ("compressed_weight_only", forms.compressed_tensors(plain[family], weight_only=True)),
        )
    }


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an engine served; with drafts, how many were proposed and accepted."""

    served: list[Served]
    drafts: list[int] | None


def _engine(model: Path, dtype: str, **more: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 64 * 2**20,
        "enable_prefix_caching": False,
        "language_model_only": True,
    } | more


def _serve(engines: list[dict[str, Any]], mode: str, prompts: list[list[int]], answer: Path) -> list[Answer]:
    """Run one engine after the other, in one process."""
    # One token alone is a case of its own for kernels that look at strides.
    alone = [prompts[0][:1]]
    job = {"prompts": prompts, "alone": alone, "max_tokens": MAX_TOKENS}
    jobs = [job | {"engine": engine} for engine in engines]
    results = serve_tokens(jobs, answer, {ENV_NAME: mode, "OMP_NUM_THREADS": "1"}, limit=600)
    return [
        Answer(
            [
                Served(prompt=prompt, **one)
                for prompt, one in zip([*prompts, *alone], result["prompts"], strict=True)
            ],
            result.get("drafts"),
        )
        for result in results
    ]


def _dtype(family: str) -> str:
    """vLLM's GDN kernels for the CPU are bfloat16 only."""
    return "float32" if family in ("qwen3", "qwen3_moe") else "bfloat16"


Serve = Callable[[str, str, str], list[Served]]


@pytest.fixture(scope="module")
def serve(
    folders: dict[tuple[str, str], Path], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Serve:
    """A function that gives what a family in a form serves in a mode; a mode's process runs once."""
    known: dict[str, dict[tuple[str, str], list[Served]]] = {}

    def serve_once(family: str, form: str, mode: str) -> list[Served]:
        if mode not in known:
            engines = [_engine(folder, _dtype(name)) for (name, _), folder in folders.items()]
            answers = _serve(engines, mode, prompts, tmp_path_factory.mktemp("served") / "answer.json")
            known[mode] = {key: answer.served for key, answer in zip(folders, answers, strict=True)}
        return known[mode][family, form]

    return serve_once


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_compressed_tensors_serves_as_modelopt(family: str, mode: str, serve: Serve) -> None:
    assert serve(family, "compressed", mode) == serve(family, "modelopt", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_weight_only_checkpoint_serves_as_one_whose_activations_stay(
    family: str, mode: str, serve: Serve
) -> None:
    """`dequant` and `packed` leave activations alone; `emulate` must where the checkpoint says so."""
    unrounded = "packed" if mode == "emulate" else mode
    assert serve(family, "compressed_weight_only", mode) == serve(family, "modelopt", unrounded)


@pytest.mark.parametrize("family", FAMILIES)
def test_control_rounded_activations_are_told_apart(family: str, serve: Serve) -> None:
    assert serve(family, "compressed", "emulate") != serve(family, "compressed", "packed")


@pytest.mark.parametrize("mode", ["dequant", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_reference(
    family: str,
    mode: str,
    plain: dict[str, Form],
    testbed: Path,
    serve: Serve,
    tmp_path: Path,
) -> None:
    """Qwen3.5's reference is that of the Qwen3-Next it is made of: rows of weights are only sorted."""
    origin = plain["qwen3_next" if family == "qwen3_5_moe" else family]
    model = Model(Checkpoint(origin.write(tmp_path / "reference", testbed)))
    result = compare(model, serve(family, "compressed", mode))
    print(family, mode, result)
    assert result.greedy_positions == (len(TEXTS) + 1) * MAX_TOKENS
    if _dtype(family) == "float32":
        assert result.beyond(LOGPROB_TOLERANCE) == 0, str(result)
        assert result.disagreements(2 * LOGPROB_TOLERANCE) == 0, str(result)
    else:
        assert result.mean_difference() < BF16_MEAN_DIFFERENCE, str(result)
        assert result.top_same > BF16_TOP_SAME * result.top_positions, str(result)


def _as_published(form: Form) -> Form:
    """As NVIDIA's Qwen3.6-35B-A3B-NVFP4: weight-only NVFP4 experts and head, FP8 before both attentions."""
    formats = {}
    for module in form.quantized():
        if ".mlp." in module:
            formats[module] = "W4A16_NVFP4"
    for module in form.unquantized():
        if module.endswith(("in_proj_qkvz", ".q_proj", ".k_proj", ".v_proj")) and not module.startswith(
            "mtp."
        ):
            formats[module] = "FP8"
    return forms.mixed(form, formats | {"lm_head": "W4A16_NVFP4"})


@pytest.fixture(scope="module")
def heads(plain: dict[str, Form]) -> dict[str, tuple[Form, Form]]:
    """Forms whose output head is special, each with the one that the reference reads."""
    next_ = plain["qwen3_next"]
    made = {
        "tied": forms.tied(next_),
        "nvfp4": forms.mixed(next_, {"lm_head": "W4A16_NVFP4"}),
        "fp8": forms.mixed(next_, {"lm_head": "FP8"}),
        "side file": forms.side_file_only(forms.mixed(next_, {"lm_head": "W4A16_NVFP4"})),
    }
    published = _as_published(next_)
    return {name: (form, form) for name, form in made.items()} | {
        "published": (forms.qwen3_5_moe(published), published),
    }


@pytest.fixture(scope="module")
def served_heads(
    heads: dict[str, tuple[Form, Form]],
    testbed: Path,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Answer]:
    """What each of them serves, drafting with the multi-token prediction head."""
    folder = tmp_path_factory.mktemp("heads")
    engines = [
        _engine(form.write(folder / name.replace(" ", "-"), testbed), "bfloat16", speculative_config=MTP)
        for name, (form, _) in heads.items()
    ]
    answers = _serve(engines, "packed", prompts, folder / "answer.json")
    return dict(zip(heads, answers, strict=True))


HEADS = ("tied", "nvfp4", "fp8", "side file", "published")


@pytest.mark.parametrize("name", HEADS)
def test_output_heads_equal_the_reference(
    name: str,
    heads: dict[str, tuple[Form, Form]],
    served_heads: dict[str, Answer],
    testbed: Path,
    tmp_path: Path,
) -> None:
    model = Model(Checkpoint(heads[name][1].write(tmp_path / "reference", testbed)))
    result = compare(model, served_heads[name].served)
    print(name, result)
    has_fp8 = name in ("fp8", "published")
    mean = FP8_MEAN_DIFFERENCE if has_fp8 else BF16_MEAN_DIFFERENCE
    assert result.mean_difference() < (TIED_MEAN_DIFFERENCE if name == "tied" else mean), str(result)
    assert result.top_same > (FP8_TOP_SAME if has_fp8 else BF16_TOP_SAME) * result.top_positions, str(result)


def test_control_a_head_of_its_own_is_told_apart(
    plain: dict[str, Form], served_heads: dict[str, Answer], testbed: Path, tmp_path: Path
) -> None:
    model = Model(Checkpoint(plain["qwen3_next"].write(tmp_path / "reference", testbed)))
    result = compare(model, served_heads["tied"].served)
    print(result)
    assert result.mean_difference() > 10 * TIED_MEAN_DIFFERENCE, str(result)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "tied"])
def test_drafts_read_the_head_of_the_checkpoint(name: str, served_heads: dict[str, Answer]) -> None:
    """A draft model with a wrong head proposes nothing that is accepted. (Nobody trained the tied model.)"""
    drafts = served_heads[name].drafts
    assert drafts is not None
    proposed, accepted = drafts
    print(name, f"{accepted} of {proposed} drafts accepted")
    assert accepted > 0.25 * proposed
