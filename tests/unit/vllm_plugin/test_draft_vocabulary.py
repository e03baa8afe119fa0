"""The reduced draft vocabulary: what it reads, what it computes, what it refuses."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fresh import python

from gb10.errors import UserError

pytest.importorskip("vllm", reason="vLLM is not installed")

from gb10.vllm_plugin.draft.ids import ENV_NAME, DraftVocabulary
from gb10.vllm_plugin.draft.vocabulary import draft_logits, restrict

VOCABULARY, HIDDEN = 96, 32


@pytest.fixture
def ids_file(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        file = tmp_path / "ids.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return write


def test_unset_is_no_vocabulary() -> None:
    assert DraftVocabulary.from_env({}) is None
    assert DraftVocabulary.from_env({ENV_NAME: ""}) is None
    assert DraftVocabulary.from_env({ENV_NAME: "full"}) is None


def test_a_number_alone_is_the_first_ids() -> None:
    vocabulary = DraftVocabulary.parse("96")
    assert list(vocabulary.ids) == list(range(96))
    vocabulary.check(96)
    with pytest.raises(UserError, match="96: the model has 95 tokens"):
        vocabulary.check(95)
    with pytest.raises(UserError, match="N is at least 1"):
        DraftVocabulary.parse("0")


def test_file_with_and_without_a_number(ids_file: Callable[[Any], Path]) -> None:
    file = ids_file([7, 3, 95, 0])
    all_of_it = DraftVocabulary.from_env({ENV_NAME: str(file)})
    assert all_of_it is not None
    assert all_of_it.ids == (7, 3, 95, 0)
    assert DraftVocabulary.parse(f"{file}:2").ids == (7, 3)
    all_of_it.check(96)
    with pytest.raises(UserError, match=r"has token id 95, but the model has 95 tokens"):
        all_of_it.check(95)
    DraftVocabulary.parse(f"{file}:2").check(8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2", "is not JSON"),
        ({"ids": [1]}, "must be a JSON list"),
        ([], "must be a JSON list"),
        ([1, -2], "no token id"),
        ([1, "2"], "no token id"),
        ([1, True], "no token id"),
        ([1, 2.0], "no token id"),
        ([4, 5, 4], "twice"),
    ],
)
def test_bad_files(ids_file: Callable[[Any], Path], content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        DraftVocabulary.parse(str(ids_file(content)))
    assert "\n" not in str(caught.value)


def test_missing_file_and_bad_numbers(ids_file: Callable[[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the draft vocabulary"):
        DraftVocabulary.parse(str(tmp_path / "none"))
    file = ids_file([7, 3])
    for number in (0, 3):
        with pytest.raises(UserError, match="N must be 1 to 2"):
            DraftVocabulary.parse(f"{file}:{number}")
    # Not a number: a part of the file's name.
    for text in ("٢", "+1", "9" * 5000):
        with pytest.raises(UserError, match="cannot read the draft vocabulary"):
            DraftVocabulary.parse(f"{file}:{text}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: it is a named pipe \(FIFO\), not a file"):
        DraftVocabulary.parse(str(tmp_path / "pipe"))


def _model(dtype: torch.dtype = torch.bfloat16, **head: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
    return SimpleNamespace(lm_head=SimpleNamespace(**({"weight": weight, "tp_size": 1} | head)))


def test_logits_are_those_of_the_chosen_rows() -> None:
    model = _model(torch.float32)
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(6))
    everything = hidden @ model.lm_head.weight.T
    ids = [int(everything[0].argmax()), 3, 90, int(everything[2].argmax()), 41]
    restrict(model, ids)
    rows, index = model.draft_head, model.draft_token_ids
    assert rows.shape == (5, HIDDEN), "only the rows of these tokens are read"
    assert rows.data_ptr() != model.lm_head.weight.data_ptr()
    logits = draft_logits(hidden, rows, index, VOCABULARY)
    assert logits.shape == (5, VOCABULARY)
    torch.testing.assert_close(logits[:, ids], everything[:, ids])
    others = [token for token in range(VOCABULARY) if token not in ids]
    assert torch.isneginf(logits[:, others]).all()
    # Token ids of the target; where its own choice is in the vocabulary, it is the draft.
    assert logits.argmax(-1)[[0, 2]].tolist() == [ids[0], ids[3]]
    assert set(logits.argmax(-1).tolist()) <= set(ids)
    restrict(model, None)
    assert not hasattr(model, "draft_head")


def test_rows_of_a_head_that_is_packed_away() -> None:
    """vLLM's CPU linear layers leave an empty weight behind: its rows are asked for."""
    weight = _model().lm_head.weight
    packed = SimpleNamespace(apply=lambda _head, x: torch.nn.functional.linear(x, weight))
    freed = torch.empty(0, dtype=weight.dtype)
    model = _model(weight=freed, cpu_linear=packed.apply, quant_method=packed, embedding_dim=HIDDEN)
    restrict(model, [5, 6, 90])
    assert torch.equal(model.draft_head, weight[[5, 6, 90]])


def test_rows_of_a_requantised_head() -> None:
    """They are taken as they are held, and multiplied as the head is."""

    class Held:
        def __init__(self, codes: torch.Tensor) -> None:
            self.tensors = {"weight": codes}

        def select(self, rows: torch.Tensor) -> "Held":
            return Held(self.tensors["weight"].index_select(0, rows))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (0.5 * self.tensors["weight"].to(x.dtype)).T

    codes = torch.arange(VOCABULARY * HIDDEN, dtype=torch.int32).reshape(VOCABULARY, HIDDEN) % 7
    model = _model(weight=torch.empty(0), gb10_dense=Held(codes))
    restrict(model, [5, 90, 6])
    assert torch.equal(model.draft_head.tensors["weight"], codes[[5, 90, 6]])
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(8))
    logits = draft_logits(hidden, model.draft_head, model.draft_token_ids, VOCABULARY)
    torch.testing.assert_close(logits[:, [5, 90, 6]], (hidden @ (0.5 * codes.float()).T)[:, [5, 90, 6]])
    assert int(torch.isfinite(logits).sum()) == 9


def test_probabilities_of_other_tokens_are_zero() -> None:
    """Sampled drafts stay within the vocabulary, and rejection sampling sees no NaN."""
    model = _model()
    restrict(model, [5, 6])
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(7)).bfloat16()
    logits = draft_logits(hidden, model.draft_head, model.draft_token_ids, VOCABULARY)
    assert logits.dtype is torch.bfloat16
    probabilities = logits.softmax(-1, dtype=torch.float32)
    torch.testing.assert_close(probabilities[:, [5, 6]].sum(-1), torch.ones(3))
    assert int((probabilities > 0).sum()) == 6


@pytest.mark.parametrize(
    "head",
    [
        {"weight": torch.zeros(4, 4, dtype=torch.uint8)},
        {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn)},
        {"weight": None},
        {"weight": torch.ones(0)},
        {"tp_size": 2},
    ],
    ids=["packed", "fp8", "none", "freed", "split"],
)
def test_heads_that_do_not_do(head: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=ENV_NAME):
        restrict(_model(**head), [1, 2])


REGISTER = """
def model():
    return ModelRegistry.models["Qwen3NextMTP"].load_model_cls()
assert model() is Qwen3NextMTP
plugin.register()
after = model()
plugin.register()
assert model() is after and issubclass(after, Qwen3NextMTP)
print("changed" if after is not Qwen3NextMTP else "as it was")
"""


def test_registered_only_when_asked_for(ids_file: Callable[[Any], Path]) -> None:
    for value, expected in ((str(ids_file([1, 2])), "changed"), ("", "as it was")):
        status, said = python(REGISTER, **{ENV_NAME: value})
        assert status == 0, said
        assert said.strip().endswith(expected)


def test_nonsense_stops_the_start(tmp_path: Path) -> None:
    status, said = python(REGISTER, **{ENV_NAME: str(tmp_path / "none")})
    assert status != 0
    assert "UserError: cannot read the draft vocabulary" in said
