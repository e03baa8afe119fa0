"""Served tokens and log probabilities against an independent float32 forward pass of the same checkpoint.

One engine process per NVFP4 mode. The tests compare what it served with the reference. They also compare it
with references that must not match: unquantised weights, and activations that are quantised where they should
not be, or the other way round.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference import forms
from reference.checkpoint import Checkpoint, Substitute
from reference.compare import Served, compare
from reference.forked import serve_tokens
from reference.forms import Form
from reference.model import Model
from reference.random_moe import UNQUANTIZED, write_random_moe
from tokenizers import Tokenizer

from gb10.nvfp4 import quantize
from gb10.vllm_plugin.cpu.mode import ENV_NAME
from gb10_lab.testbed.quantize import quantize_checkpoint

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

MAX_TOKENS = 24
LOGPROB_TOLERANCE = 1e-4
# Two logits that are each off by the tolerance can change places when they are this close.
NEAR_TIE = 2 * LOGPROB_TOLERANCE
# Where activations are rounded to FP4: the shares of positions that may differ, and that may choose
# otherwise, after a rounding that could not be named. The controls: over 90 % and about 10 %.
UNNAMED_ROUNDINGS = 0.1
OTHER_CHOICES = 0.02
MODES = ("dequant", "packed", "emulate")

# bfloat16 has 8 bits: single log probabilities are off by some 0.01, more where a router's choice flips.
BF16_MEAN_DIFFERENCE = 0.04
BF16_TOP_SAME = 0.95
BF16_MEAN_DIFFERENCE_OF_OTHERS = 0.08

TEXTS = (
    "The",
    "A block scale covers sixteen values of a row.",
    "def register() -> None:\n    return None\n",
    "0 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597 2584 4181",
    "Once upon a time there was a small model. It had four layers and nobody had trained it.",
    "for name, value in sorted(os.environ.items()):\n    print(f'{name}={value}')\n" * 3,
    "Na\u00efve caf\u00e9 \u2013 \u03b1, \u03b2, \u03b3; \u4e2d\u6587; \U0001f600!",
    " ".join(f"token number {number}" for number in range(40)),
)


@pytest.fixture(scope="module")
def moe_originals(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attention-only model before it is quantised."""
    folder = tmp_path_factory.mktemp("numerics") / "qwen3_moe_bf16"
    write_random_moe(folder, testbed)
    return folder


@pytest.fixture(scope="module")
def moe(moe_originals: Path) -> Path:
    """The attention-only model: vLLM runs it in float32."""
    folder = moe_originals.parent / "qwen3_moe"
    quantize_checkpoint(moe_originals, folder, UNQUANTIZED)
    return folder


@pytest.fixture(scope="module")
def weight_only_moe(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights declared W4A16_NVFP4, without input scales."""
    folder = tmp_path_factory.mktemp("numerics") / "qwen3_moe_w4a16"
    return forms.weight_only(Form.read(moe)).write(folder, moe)


Serve = Callable[..., list[Served]]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """A function that serves the texts with vLLM, once per set of arguments."""
    known: dict[tuple[Path, str, str], list[Served]] = {}

    def serve_once(model: Path, mode: str, dtype: str = "float32") -> list[Served]:
        key = (model, mode, dtype)
        if key not in known:
            known[key] = _serve(model, mode, dtype, tmp_path_factory.mktemp("served") / "answer.json")
        return known[key]

    return serve_once


def _serve(model: Path, mode: str, dtype: str, answer: Path) -> list[Served]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    job = {
        "engine": {
            "model": str(model),
            "dtype": dtype,
            "enforce_eager": True,
            "max_model_len": 512,
            "kv_cache_memory_bytes": 64 * 2**20,
            "enable_prefix_caching": False,
        },
        "prompts": prompts,
        "max_tokens": MAX_TOKENS,
    }
    # Tiny matrices: more threads only wait for each other.
    results = serve_tokens(job, answer, {ENV_NAME: mode, "OMP_NUM_THREADS": "1"})["prompts"]
    return [Served(prompt=prompt, **result) for prompt, result in zip(prompts, results, strict=True)]


def _originals(folder: Path) -> Substitute:
    """Give the weights as they were before they were quantised."""
    return Checkpoint(folder).tensor


def _assert_equal(model: Model, served: list[Served]) -> None:
    """Every choice is the reference's own, save near-ties, and every log probability agrees."""
    result = compare(model, served, tolerance=LOGPROB_TOLERANCE)
    print(result)
    assert result.greedy_positions == len(TEXTS) * MAX_TOKENS
    assert result.disagreements(NEAR_TIE) == 0, str(result)
    assert result.beyond(LOGPROB_TOLERANCE) == 0, str(result)


def _assert_equal_but_for_roundings(model: Model, served: list[Served]) -> None:
    """As _assert_equal, but activations are rounded to FP4, which is a step function.

    Engine and reference add in different orders. A number that lies on the edge between two codes then moves
    everything after it. `compare` finds most such roundings; what it cannot name must stay rare. The controls
    below, which differ nearly everywhere, show what these bounds can tell apart.
    """
    result = compare(model, served, tolerance=LOGPROB_TOLERANCE)
    print(result)
    assert result.greedy_positions == len(TEXTS) * MAX_TOKENS
    assert result.beyond(LOGPROB_TOLERANCE) <= UNNAMED_ROUNDINGS * result.top_positions, str(result)
    assert result.disagreements(NEAR_TIE) <= OTHER_CHOICES * result.top_positions, str(result)


def _assert_different(model: Model, served: list[Served]) -> None:
    """Nearly no log probability agrees: the test above can tell these numerics apart."""
    result = compare(model, served)
    print(result)
    assert result.beyond(10 * LOGPROB_TOLERANCE) > 0.9 * result.top_positions, str(result)


@pytest.mark.parametrize("mode", ["dequant", "packed"])
def test_float32_equals_reference(mode: str, moe: Path, serve: Serve) -> None:
    _assert_equal(Model(Checkpoint(moe)), serve(moe, mode))


def test_emulated_activations_equal_reference(moe: Path, serve: Serve) -> None:
    _assert_equal_but_for_roundings(Model(Checkpoint(moe, quantize_activations=True)), serve(moe, "emulate"))


def test_weight_only_checkpoint_keeps_activations(weight_only_moe: Path, serve: Serve) -> None:
    """W4A16_NVFP4 has no input scales: even `emulate` must leave the activations alone."""
    _assert_equal(Model(Checkpoint(weight_only_moe)), serve(weight_only_moe, "emulate"))


@pytest.mark.parametrize("mode", MODES)
def test_control_unquantized_weights_differ(mode: str, moe: Path, moe_originals: Path, serve: Serve) -> None:
    checkpoint = Checkpoint(moe, quantize_activations=mode == "emulate", substitute=_originals(moe_originals))
    _assert_different(Model(checkpoint), serve(moe, mode))


@pytest.mark.parametrize("mode", MODES)
def test_control_other_activations_differ(mode: str, moe: Path, serve: Serve) -> None:
    _assert_different(Model(Checkpoint(moe, quantize_activations=mode != "emulate")), serve(moe, mode))


def test_control_close_calls_explain_no_other_error(moe: Path, serve: Serve) -> None:
    """Turning roundings round cannot make up for one log probability that is wrong by 0.01."""
    model = Model(Checkpoint(moe, quantize_activations=True))
    served = next(
        one
        for one in sorted(serve(moe, "emulate"), key=lambda one: len(one.prompt))
        if compare(model, [one], tolerance=LOGPROB_TOLERANCE).beyond(LOGPROB_TOLERANCE) == 0
    )
    wrong = dataclasses.replace(served, logprobs=[served.logprobs[0] + 0.01, *served.logprobs[1:]])
    assert compare(model, [wrong], tolerance=LOGPROB_TOLERANCE).beyond(LOGPROB_TOLERANCE) > 0


@pytest.mark.parametrize("architecture", ["qwen3_moe", "qwen3_next"])
def test_control_weights_are_those_behind_the_checkpoint(
    architecture: str, request: pytest.FixtureRequest
) -> None:
    """Quantising the control's weights gives the checkpoint's bytes."""
    packed_by, original_by = {"qwen3_moe": ("moe", "moe_originals"), "qwen3_next": ("demo_model", "testbed")}[
        architecture
    ]
    checkpoint = Checkpoint(request.getfixturevalue(packed_by))
    originals = _originals(request.getfixturevalue(original_by))
    names = checkpoint.quantized_names()
    assert names
    for name in names:
        again = quantize(originals(name), checkpoint.stored(f"{name}_scale_2"))
        assert torch.equal(again.packed, checkpoint.stored(name)), name
        assert torch.equal(
            again.block_scales.view(torch.uint8), checkpoint.stored(f"{name}_scale").view(torch.uint8)
        ), name


def test_gated_delta_net_in_bfloat16(demo_model: Path, serve: Serve) -> None:
    """vLLM's GDN kernels for the CPU are bfloat16 only, so this model is compared with a tolerance."""
    result = compare(Model(Checkpoint(demo_model)), serve(demo_model, "dequant", "bfloat16"))
    print(result)
    assert result.greedy_positions == len(TEXTS) * MAX_TOKENS
    assert result.mean_difference() < BF16_MEAN_DIFFERENCE, str(result)
    assert result.top_same > BF16_TOP_SAME * result.top_positions, str(result)


@pytest.mark.parametrize("control", ["unquantized weights", "quantized activations"])
def test_control_gated_delta_net_tells_numerics_apart(
    control: str, demo_model: Path, testbed: Path, serve: Serve
) -> None:
    if control == "unquantized weights":
        checkpoint = Checkpoint(demo_model, substitute=_originals(testbed))
    else:
        checkpoint = Checkpoint(demo_model, quantize_activations=True)
    result = compare(Model(checkpoint), serve(demo_model, "dequant", "bfloat16"))
    print(result)
    assert result.mean_difference() > BF16_MEAN_DIFFERENCE_OF_OTHERS, str(result)
    assert result.top_same < BF16_TOP_SAME * result.top_positions, str(result)


def test_a_job_that_fails_says_why_and_ends_alone(moe: Path, tmp_path: Path) -> None:
    """What all these tests stand on: jobs are forked from one process, and the next one is none the wiser."""
    job = {"engine": {"model": str(tmp_path)}, "prompts": [], "max_tokens": 1}
    with pytest.raises(AssertionError, match=r"the engine failed[\s\S]*config\.json"):
        serve_tokens(job, tmp_path / "answer.json", {ENV_NAME: "packed"})
    with pytest.raises(AssertionError, match="cannot be set in a fork"):
        serve_tokens(job, tmp_path / "answer.json", {"OMP_NUM_THREADS": "2"})
    with pytest.raises(AssertionError, match=r"the engine failed[\s\S]*GB10_CPU_NVFP4_MODE='no mode'"):
        serve_tokens([], tmp_path / "answer.json", {ENV_NAME: "no mode"})
    assert serve_tokens([], tmp_path / "answer.json", {ENV_NAME: "emulate"}) == []
