"""Speculative decoding on vLLM's CPU engine: drafts are accepted, and the output is what it is without."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reference.engines import on_path
from speculative_requests import LIMIT

from gb10_lab.speculative.equality import NEAR_TIE

pytest.importorskip("vllm", reason="vLLM is not installed")

pytestmark = pytest.mark.timeout(LIMIT + 60)

DRAFTS = [1, 3]
PROMPTS, TOKENS, SAMPLES = 8, 32, 1000


@pytest.fixture(scope="module")
def draft_ids(testbed: Path) -> Path:
    """The trained model's token ids by frequency."""
    return testbed / "draft_vocabulary.json"


@pytest.fixture(scope="module")
def figures(
    demo_model: Path,
    draft_ids: Path,
    held_out: Path,
    variables: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """One run of the program; it exits with 0 only when greedy output and distributions are right."""
    out = tmp_path_factory.mktemp("speculative")
    command = [sys.executable, "-m", "gb10_lab", "speculative", "--model", str(demo_model)]
    command += ["--held-out", str(held_out), "--draft-ids", str(draft_ids)]
    command += ["--draft", *map(str, DRAFTS), "--draft-vocabulary", "full", "1/8"]
    command += ["--prompts", str(PROMPTS), "--tokens", str(TOKENS), "--timed", "1", "--concurrency", "32"]
    command += ["--samples", str(SAMPLES), "--out", str(out)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert max(len(line) for line in done.stdout.split("\n")) <= 80
    assert (out / "speculative.txt").read_text().split("\n")[:3] == done.stdout.split("\n")[:3]
    figures: dict[str, Any] = json.loads((out / "speculative.json").read_text())
    return figures


def test_drafts_are_accepted(figures: dict[str, Any]) -> None:
    rows = {(row["draft"], row["vocabulary"]): row for row in figures["rows"]}
    assert list(rows) == [(0, "full")] + [(k, name) for k in DRAFTS for name in ("full", "1/8")]
    for (draft, _), row in rows.items():
        assert len(row["acceptance"]) == draft
        # A draft counts only when all before it were accepted.
        assert sorted(row["acceptance"], reverse=True) == row["acceptance"]
        assert row["accepted_length"] == pytest.approx(1 + sum(row["acceptance"]))
        assert row["tokens_per_second"] > 0
        assert row["compared_prompts"] == PROMPTS
    # An untrained head would have one draft in thousands accepted.
    assert rows[1, "full"]["acceptance"][0] > 0.2
    assert rows[3, "full"]["accepted_length"] > rows[1, "full"]["accepted_length"]
    # Fewer target steps: each gives `accepted_length` tokens.
    steps = rows[3, "full"]["drafts"] / (PROMPTS * TOKENS)
    assert steps == pytest.approx(1 / rows[3, "full"]["accepted_length"], rel=0.15)


def test_a_small_draft_vocabulary_costs_acceptance(figures: dict[str, Any]) -> None:
    rows = {(row["draft"], row["vocabulary"]): row for row in figures["rows"]}
    assert 1 < rows[3, "1/8"]["accepted_length"] < rows[3, "full"]["accepted_length"]


def test_greedy_output_is_equal_but_for_near_ties(figures: dict[str, Any]) -> None:
    for row in figures["rows"]:
        assert row["compared_tokens"] > PROMPTS * TOKENS / 4
        for divergence in row["divergences"]:
            assert 0 <= divergence["gap"] <= figures["near_tie_nats"]
            assert divergence["reference"] != divergence["other"]


def test_sampling_keeps_the_distribution(figures: dict[str, Any]) -> None:
    control, *right = figures["sampling"]
    assert control["must_differ"]
    assert control["p_value"] < 1e-3
    assert len(right) == 2
    for test in right:
        assert test["p_value"] > 1e-3
        assert test["tests"]["token 1"]["cells"] >= 5


ENGINES = """
import dataclasses, json, os, sys
from pathlib import Path
import gb10_lab.speculative.engine as engines
from gb10_lab.speculative.distribution import corrected, same_distribution
from gb10_lab.speculative.equality import compare
from gb10_lab.speculative.prompts import read_prompts
from reference import lean
from tokenizers import Tokenizer

model, held_out, draft_ids, shuffled, samples = sys.argv[1:]
prompts = [prompt.ids for prompt in read_prompts(
    Path(held_out), Tokenizer.from_file(model + "/tokenizer.json"), 4, seed=1)]
settings = engines.Settings(Path(model), concurrency=32, max_model_len=640)
engines.prepare(settings)
lean.install()
ids, answer = json.loads(Path(draft_ids).read_text()), {}
count = len(ids) // 8

def greedy(engine):
    before = engine.counters()
    tokens, _ = engine.greedy(prompts, 24)
    return tokens, engine.counters().since(before).accepted

def largest_gap(tokens):
    return max((divergence.gap for divergence in compare(reference, tokens).divergences), default=0.0)

def draw(engine, seed):
    return [(0, sample) for sample in engine.samples(prompts[0][-32:], int(samples), 3, seed)]

with engines.Engine(settings, 0) as engine:
    expected = draw(engine, 0)
    reference = engine.reference(prompts, 24)
os.environ["GB10_DRAFT_VOCABULARY"] = f"{draft_ids}:{count}"
with engines.Engine(settings, 3) as engine:
    answer["by environment"] = greedy(engine)
    engine.restrict(ids[:count])
    answer["by hand"] = greedy(engine)
    engine.restrict(None)
    answer["all"] = greedy(engine)
    engine.restrict(json.loads(Path(shuffled).read_text()))
    answer["all, shuffled"] = greedy(engine)
    answer["gap"] = largest_gap(answer["all"][0])
    # Gated DeltaNet goes on from the state before the first draft, whatever was accepted.
    import vllm.model_executor.layers.mamba.ops.cpu.gdn_attention as gdn
    right = gdn._spec_forward
    def wrong(layer, metadata, *rest):
        count = metadata.num_accepted_tokens
        return right(layer, dataclasses.replace(metadata, num_accepted_tokens=count.clamp(max=1)), *rest)
    gdn._spec_forward = wrong
    answer["gap of a wrong state"] = largest_gap(greedy(engine)[0])
    gdn._spec_forward = right
with engines.Engine(settings, 3, draft_sample_method="probabilistic") as engine:
    answer["p"] = corrected(same_distribution(expected, draw(engine, 1 << 20)))
    # A sampler that takes each draft unseen.
    import vllm.v1.sample.rejection_sampler as sampler
    right = sampler.generate_uniform_probs
    sampler.generate_uniform_probs = lambda *arguments: right(*arguments).zero_()
    answer["p of a wrong sampler"] = corrected(same_distribution(expected, draw(engine, 1 << 21)))
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(
    demo_model: Path,
    draft_ids: Path,
    held_out: Path,
    variables: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What engines with a reduced draft vocabulary give."""
    shuffled = tmp_path_factory.mktemp("ids") / "shuffled.json"
    ids = json.loads(draft_ids.read_text())
    random.Random(4).shuffle(ids)
    shuffled.write_text(json.dumps(ids))
    arguments = map(str, (demo_model, held_out, draft_ids, shuffled, SAMPLES))
    command = [sys.executable, "-c", ENGINES, *arguments]
    done = subprocess.run(
        command, env=on_path(variables), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.rstrip().split("\n")[-1])
    return answer


def test_the_variable_sets_the_draft_vocabulary(answer: dict[str, Any]) -> None:
    assert answer["by environment"] == answer["by hand"]
    assert answer["by environment"][1] != answer["all"][1]


def test_all_tokens_in_any_order_are_no_restriction(answer: dict[str, Any]) -> None:
    assert answer["all, shuffled"] == answer["all"]


def test_a_wrong_state_is_no_near_tie(answer: dict[str, Any]) -> None:
    assert answer["gap"] <= NEAR_TIE
    assert answer["gap of a wrong state"] > NEAR_TIE


def test_drafts_may_be_sampled_too(answer: dict[str, Any]) -> None:
    """Tokens outside the draft vocabulary still come, from the target, as often as they should."""
    assert answer["p"] > 1e-3


def test_a_sampler_that_takes_every_draft_is_found_out(answer: dict[str, Any]) -> None:
    assert answer["p of a wrong sampler"] < 1e-3


def test_nonsense_is_one_line(demo_model: Path, held_out: Path, variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "gb10_lab", "speculative", "--model", str(demo_model)]
    command += ["--held-out", str(held_out), "--draft-ids", str(held_out)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gb10: error: the draft vocabulary")
    assert done.stderr.count("\n") == 1
