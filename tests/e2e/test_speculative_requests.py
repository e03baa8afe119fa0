"""Every kind of request with drafts on vLLM's CPU engine: answered, with what it gets without drafts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reference.engines import on_path
from speculative_requests import ALONE, ENGINES, LIMIT, ONE_TOKEN, REFUSED, SAMPLED_ALIKE, kinds

from gb10_lab.speculative.distribution import THRESHOLD
from gb10_lab.speculative.equality import NEAR_TIE

pytest.importorskip("vllm", reason="vLLM is not installed")

pytestmark = pytest.mark.timeout(LIMIT + 60)

PROGRAM = Path(__file__).with_name("speculative_requests.py")
LARGEST = 0.2
"""Largest difference of a log-probability (nats) at the same token with drafts and without: rounding."""


@pytest.fixture(scope="module")
def answer(
    demo_model: Path, held_out: Path, variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What `speculative_requests.py` found."""
    file = tmp_path_factory.mktemp("requests") / "answer.json"
    command = [sys.executable, str(PROGRAM), str(demo_model), str(held_out), str(file)]
    done = subprocess.run(
        command, env=on_path(variables), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def beyond(gaps: dict[str, list[float]]) -> dict[str, list[float]]:
    """Kinds with a first difference that is no near-tie."""
    return {kind: found for kind, found in gaps.items() if max(found) > NEAR_TIE}


@pytest.mark.parametrize("engine", ENGINES)
def test_text_is_what_it_is_without_drafts(answer: dict[str, Any], engine: str) -> None:
    """All kinds in one batch, and some alone."""
    for how, names in (("gaps", kinds()), ("alone", ALONE)):
        assert list(answer[engine][how]) == list(names)
        assert beyond(answer[engine][how]) == {}
    assert answer[engine]["logprob error"] < LARGEST


@pytest.mark.parametrize("engine", ENGINES)
def test_drafts_were_made_and_taken(answer: dict[str, Any], engine: str) -> None:
    assert 0 < answer[engine]["accepted"] <= answer[engine]["drafts"] * 4


def test_drafts_that_are_allowed_and_never_taken_change_nothing(answer: dict[str, Any]) -> None:
    """Where a short step leaves columns of older steps in the convolution's buffer, words turn to noise."""
    rare = answer["mtp 3, rare letters"]
    assert beyond(rare["gaps"]) == {}
    assert rare["accepted"] < answer["mtp 3"]["accepted"] / 10


@pytest.mark.parametrize("engine", ENGINES)
def test_a_seed_gives_the_same_again(answer: dict[str, Any], engine: str) -> None:
    assert answer[engine]["repeats"] == dict.fromkeys(SAMPLED_ALIKE, True)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_vllm_does_not_take_is_refused(answer: dict[str, Any], engine: str) -> None:
    """And the engine goes on: what comes after it is answered."""
    refusals = answer[engine]["refusals"]
    assert refusals.keys() == REFUSED.keys()
    assert all("not yet supported with speculative decoding" in said for said in refusals.values())


def test_narrow_sampling_keeps_the_distribution(answer: dict[str, Any]) -> None:
    """top_k, top_p, temperature and a penalty together, against the same without drafts."""
    assert answer["mtp 3"]["p"] > THRESHOLD
    assert answer["no drafts"]["p of another sampler"] < THRESHOLD


def test_without_drafts_the_same_comes_again(answer: dict[str, Any]) -> None:
    """The control: the same requests again, and those whose sampling leaves one token."""
    assert set(ONE_TOKEN) <= answer["no drafts"]["gaps"].keys()
    assert beyond(answer["no drafts"]["gaps"]) == {}
