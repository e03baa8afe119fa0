"""``gb10 predict``: what it prints, its units, and what it refuses."""

import json
from typing import Any

import pytest

from gb10 import cli
from gb10.predict.architecture import architectures
from gb10.predict.cost import fitted
from gb10.predict.engines import MOST_TOKENS, accepted_length, predict, published
from gb10.predict.step import COUNTS, READS, Load, sizes_of, work

NEXT = "qwen3-next-80b-a3b"


def asked(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert cli.main(["predict", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_table_says_that_it_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", NEXT]) == 0
    text = capsys.readouterr().out
    assert f"{NEXT}: predicted for one GB10, not measured here" in text
    assert "No GB10 has run it" in text
    assert "measured by others: 41.8 tok/s" in text
    table = text.split("\n\nmeasured")[0].split("measured by others")[0]
    assert max(len(line) for line in table.splitlines()) <= 100


def test_a_step_is_the_sum_of_its_kinds_and_gives_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, NEXT, "--batch", "2", "--draft", "2", "--accepted", "2.5")
    for one in found["predictions"]:
        assert sum(one["seconds"].values()) == pytest.approx(one["step_seconds"])
        assert one["tokens_per_second"] == pytest.approx(2 * 2.5 / one["step_seconds"])
        assert one["lowest"] < one["tokens_per_second"] < one["highest"]
    assert {one["engine"] for one in found["predictions"]} == {"vllm", "gb10"}
    assert found["predicted"] is True


def test_the_error_bar_is_the_held_out_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Four of five predictions are off by at most `most`: predicted = measured × (1 ± most)."""
    found = asked(capsys, NEXT, "--engine", "vllm")
    (one,) = found["predictions"]
    most = found["error_bar"]["four_of_five"]
    assert one["lowest"] * (1 + most) == pytest.approx(one["tokens_per_second"])
    assert one["highest"] * (1 - most) == pytest.approx(one["tokens_per_second"])


def test_bytes_are_those_of_the_design() -> None:
    """Qwen3-Next-80B-A3B-NVFP4: 4.16 GB of weights a token, 44 % GDN in_proj, 15 % head, 20 % experts."""
    model = architectures()[NEXT]
    sizes = sizes_of(model, model.shipped)
    weights = sum(sizes.weights.values()) + sizes.expert * sizes.chosen
    assert weights == pytest.approx(4.16e9, rel=0.005)
    assert model.matrices()["gdn_in"][1] * 2 / weights == pytest.approx(0.44, abs=0.01)
    assert sizes.head / weights == pytest.approx(0.15, abs=0.01)
    assert sizes.expert * 10 / weights == pytest.approx(0.20, abs=0.01)


def test_units() -> None:
    """Rates are bytes a second and pieces seconds: a GB at the rate of 16 bit takes 4 to 5 ms."""
    known = fitted().engines["vllm"]
    done = dict.fromkeys((*READS, *COUNTS), 0.0)
    assert sum(known.times(done).values()) == 0
    done["read 16 bit"] = 1e9
    assert 0.004 < sum(known.times(done).values()) < 0.005
    done = dict.fromkeys((*READS, *COUNTS), 0.0) | {"matrix": 1.0}
    assert 2e-6 < sum(known.times(done).values()) < 1e-5


@pytest.mark.parametrize("engine", ["vllm", "gb10"])
def test_more_to_do_takes_longer(engine: str) -> None:
    model = architectures()[NEXT]

    def seconds(**load: int) -> float:
        return predict(published(model), engine, Load(**load)).seconds

    bare = seconds()
    assert bare < seconds(context=8192) < seconds(context=65536)
    assert bare < seconds(sequences=2) < 2 * bare
    assert bare < seconds(drafts=1) < seconds(drafts=2)


def test_experts_of_a_batch_are_read_once_each() -> None:
    model = architectures()[NEXT]
    sizes = sizes_of(model, model.shipped)
    one, four = work(sizes, Load()), work(sizes, Load(4, experts=26.6))
    assert four["read experts"] / one["read experts"] == pytest.approx(2.66)
    assert four["read 16 bit"] == one["read 16 bit"]
    assert four["recurrent state"] == 4 * one["recurrent state"]


def test_ours_reads_less_in_fewer_launches() -> None:
    model = architectures()[NEXT]
    stock = predict(published(model), "vllm", Load())
    fp8 = predict(published(model), "gb10", Load(), dense="fp8", head="fp8")
    nvfp4 = predict(published(model), "gb10", Load(), dense="nvfp4", head="nvfp4")
    assert nvfp4.bytes < fp8.bytes < stock.bytes
    # docs/engine.md: 2.72 and 2.08 GB of weights, and 75 MB of states that are read and written.
    assert fp8.bytes == pytest.approx(2.72e9 + 0.075e9, rel=0.01)
    assert nvfp4.bytes == pytest.approx(2.08e9 + 0.075e9, rel=0.01)
    assert nvfp4.tokens_per_second > fp8.tokens_per_second > 1.3 * stock.tokens_per_second


def test_accepted_length() -> None:
    assert accepted_length(0) == 1
    assert 2.13 < accepted_length(2) < 2.68
    assert accepted_length(2) < accepted_length(3) < 4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nonsense"], "'nonsense' is no folder, no name on the hub (OWNER/NAME), and none of: qwen3-4b"),
        ([NEXT, "--revision", "main"], "--revision is for models of the hub"),
        (["/nonexistent/model"], "/nonexistent/model"),
        ([], "Missing argument"),
        ([NEXT, "--batch", "0"], "not a whole number of 1 or more"),
        ([NEXT, "--batch", str(MOST_TOKENS + 1)], "take fewer"),
        ([NEXT, "--batch", "8", "--draft", "2"], "24 tokens a step"),
        ([NEXT, "--context", "-1"], "not a whole number"),
        ([NEXT, "--context", "99999999"], "more than any model here has"),
        ([NEXT, "--context", "262145"], f"--context 262145: {NEXT} takes at most 262144 tokens"),
        (["qwen3-8b", "--context", "40961"], "qwen3-8b takes at most 40960 tokens"),
        ([NEXT, "--engine", "vllm", "--dense", "nvfp4"], "--dense is what gb10's engine makes of 16 bit"),
        ([NEXT, "--engine", "vllm", "--head", "fp8"], "--head is what gb10's engine makes of 16 bit"),
        (
            ["gpt-oss-120b", "--head", "fp8"],
            "--head is for gb10's engine, and gb10's kernels do not take all",
        ),
        ([NEXT, "--accepted", "2"], "a step gives 1 to 1 tokens"),
        ([NEXT, "--draft", "2", "--accepted", "nan"], "a step gives 1 to 3 tokens"),
        ([NEXT, "--kv", "int3"], "--kv 'int3' is none of bf16"),
        ([NEXT, "--engine", "sglang"], "sglang"),
        (["qwen3-8b", "--draft", "1"], "has no MTP layer"),
        (["gpt-oss-120b", "--engine", "gb10"], "do not take all layers of gpt-oss-120b"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", *argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("gb10: error: ") and printed.err.count("\n") == 1


def test_a_model_that_is_not_ours_is_predicted_for_vllm_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "gpt-oss-120b")
    assert [one["engine"] for one in found["predictions"]] == ["vllm"]
