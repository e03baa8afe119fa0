"""Training on a CPU with a small model and a small text: data, optimiser, both stages, the command."""

import json
import lzma
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from small_model import SMALL, make_model, make_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gb10.errors import UserError
from gb10.files import sha256
from gb10_lab.cli import main
from gb10_lab.testbed.model import Model, initialise
from gb10_lab.text.documents import Document, read_documents
from gb10_lab.text.tokenizer import read_tokenizer
from gb10_lab.training import data, train, train_draft
from gb10_lab.training.loop import Plan, optimise, rate_factor
from gb10_lab.training.muon import Optimiser, orthogonalise

PLAN = Plan(tokens=40 * 4 * 64, batch=4, length=64, rate=5e-3, minutes=5, seed=1)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def source(seed: int) -> str:
    """Something like a Python module, the same one for the same seed: 40 small functions."""
    draw = random.Random(seed)
    verbs = ("read", "write", "load", "check", "find", "make")
    nouns = ("name", "path", "line", "file", "token", "table", "record", "folder")
    functions = []
    for _ in range(40):
        verb, noun, other = draw.choice(verbs), draw.choice(nouns), draw.choice(nouns)
        functions.append(
            f"def {verb}_{noun}({other}, default=None):\n"
            f'    """{verb.title()} the {noun} of a {other}."""\n'
            f"    if {other} is None:\n"
            f"        return default\n"
            f"    return {other}.{verb}({noun}={draw.randrange(10)})\n"
        )
    return "\n\n".join(functions)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus.jsonl.xz, heldout.jsonl and tokenizer.json."""
    folder = tmp_path_factory.mktemp("text")
    sources = [source(seed) for seed in range(20)]
    lines = [
        json.dumps({"package": "ab"[number % 2], "path": f"{number}.py", "text": text}) + "\n"
        for number, text in enumerate(sources)
    ]
    with lzma.open(folder / "corpus.jsonl.xz", "wt") as file:
        file.writelines(lines)
    (folder / "heldout.jsonl").write_text("".join(lines[:6]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        sources,
        trainers.BpeTrainer(
            vocab_size=SMALL.vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def stream(text: Path) -> torch.Tensor:
    tokenizer = read_tokenizer(text / "tokenizer.json")
    return data.encode(tokenizer, list(read_documents(text / "corpus.jsonl.xz")))


def test_documents_become_tokens_and_back(text: Path, stream: torch.Tensor) -> None:
    documents = list(read_documents(text / "corpus.jsonl.xz"))
    tokenizer = read_tokenizer(text / "tokenizer.json")
    assert stream.dtype == torch.int32
    ends = (stream == 0).nonzero()[:, 0].tolist()
    assert len(ends) == len(documents), "a special token's name inside a text is text"
    assert ends[0] == 0, "the end-of-text token stands before each document"
    assert tokenizer.decode(stream[ends[1] + 1 : ends[2]].tolist()) == documents[1].text


def test_order_of_documents_comes_from_the_seed() -> None:
    documents = [Document("a", str(number), "text") for number in range(50)]
    assert data.shuffled(documents, 1) == data.shuffled(documents, 1)
    assert data.shuffled(documents, 1) != data.shuffled(documents, 2)
    assert sorted(data.shuffled(documents, 1), key=lambda one: int(one.path)) == documents


def test_batches_cover_the_text_each_time_anew() -> None:
    """Within one pass nothing repeats; a token and the one after it always stand side by side."""
    row = torch.arange(1000, dtype=torch.int32)
    passes = list(islice(data.batches(row, 10, 33, seed=5), 12))
    again = list(islice(data.batches(row, 10, 33, seed=5), 12))
    assert all(torch.equal(one, other) for one, other in zip(passes, again, strict=True))
    assert not torch.equal(passes[0], next(data.batches(row, 10, 33, seed=6)))
    for batch in passes:
        assert batch.shape == (33, 11)
        assert (batch.diff(dim=1) == 1).all()
    first = torch.cat(passes[:3])[:, :10].flatten()
    assert len(first.unique()) == len(first), "99 windows of 10 tokens are one pass"  # type: ignore[no-untyped-call]
    assert len(torch.cat(passes)[:, 0].remainder(10).unique()) > 1, "each pass cuts elsewhere"  # type: ignore[no-untyped-call]


def test_windows() -> None:
    found = data.windows(torch.arange(35), 10)
    assert found.tolist() == [list(range(start, start + 11)) for start in (0, 10, 20)]
    with pytest.raises(UserError, match="fewer than one window"):
        data.windows(torch.arange(10), 10)
    with pytest.raises(UserError, match="at least 21"):
        next(data.batches(torch.arange(20), 10, 1, seed=0))


def test_orthogonalised_matrices() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(5, 16, 48)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    assert float(torch.linalg.svdvals(matrices).max()) > 5, "the control: they were not so before"


def test_each_parameter_moves_by_its_own_gradient() -> None:
    """A step with one parameter's gradient alone changes that parameter most: no batch mixes them up."""
    model = make_model(dtype=torch.float32)
    named = dict(model.named_parameters())
    for chosen in ("model.layers.0.linear_attn.in_proj_qkvz.weight", "model.layers.1.mlp.experts.down"):
        before = {name: value.detach().clone() for name, value in named.items()}
        optimiser = Optimiser(named.items(), 1e-3, SMALL.head_dim)
        for name, value in named.items():
            value.grad = torch.zeros_like(value) if name != chosen else torch.randn_like(value)
        optimiser.step(1.0)
        moved = {
            name: float((value.detach() - before[name] * (1 - 1e-4)).square().mean().sqrt())
            for name, value in named.items()
            if value.dim() > 1
        }
        assert moved[chosen] == pytest.approx(2e-4, rel=0.3), "0.2 of the rate, as AdamW would"
        others = [moved[name] for name in moved if "mlp.experts" in name or "proj_qkvz" in name]
        assert sorted(others)[-2] < 1e-6


def test_learning_rate_over_the_budget() -> None:
    assert rate_factor(0.001) == pytest.approx(0.05)
    assert rate_factor(0.2) == 1.0
    assert rate_factor(0.7) == pytest.approx(0.5)
    assert rate_factor(1.0) == 0.0


def trained(stream: torch.Tensor) -> tuple[Model, list[list[float]]]:
    model = initialise(Model(SMALL), 0)
    progress = train.pretrain(model, PLAN, data.batches(stream, 64, 4, seed=1), compiled=False)
    return model, progress.curve


@pytest.fixture(scope="module")
def model_and_curve(stream: torch.Tensor) -> tuple[Model, list[list[float]]]:
    return trained(stream)


def test_loss_falls_and_the_run_repeats(
    stream: torch.Tensor, model_and_curve: tuple[Model, list[list[float]]]
) -> None:
    model, curve = model_and_curve
    assert curve[0][1] > 5.0
    assert curve[-1][1] < curve[0][1] - 1.0
    assert [point[0] for point in curve] == [number * 256 for number in range(1, 41)]
    again, repeated = trained(stream)
    for (_, loss), (_, other) in zip(curve, repeated, strict=True):
        assert loss == pytest.approx(other, abs=0.02)
    fresh = initialise(Model(SMALL), 0)
    for name, value in model.named_parameters():
        same = torch.equal(value, dict(fresh.named_parameters())[name])
        assert same == name.startswith("mtp."), f"{name}: the draft head is not touched, all else is trained"
    assert again.compute is None


def test_evaluation_is_the_mean_over_tokens(model_and_curve: tuple[Model, list[list[float]]]) -> None:
    model = model_and_curve[0]
    sets = {"long": make_tokens(9, 40, seed=1), "short": make_tokens(2, 20, seed=2)}
    found = train.evaluate(model, sets)
    losses = {}
    with torch.no_grad():
        for name, windows in sets.items():
            chances = model.logits(model(windows[:, :-1])).log_softmax(-1)
            losses[name] = -float(chances.gather(-1, windows[:, 1:, None]).mean())
    assert found["packages"]["long"] == {"tokens": 351, "loss": pytest.approx(losses["long"], abs=1e-4)}
    assert found["loss"] == pytest.approx((losses["long"] * 351 + losses["short"] * 38) / 389, abs=1e-4)


def test_time_limit_stops_the_run(stream: torch.Tensor) -> None:
    model = initialise(Model(SMALL), 0)
    plan = Plan(tokens=10**9, batch=1, length=64, rate=1e-3, minutes=0.001, seed=1)
    progress = train.pretrain(model, plan, data.batches(stream, 64, 1, seed=1), compiled=False)
    assert progress.stopped_early
    assert progress.record(plan)["tokens"] < 10**5


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))

    def loss_of(window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = weight.sum() * float("nan")
        return loss, loss

    with pytest.raises(FloatingPointError, match="nan"):
        optimise(PLAN, [("weight", weight)], 16, iter([torch.zeros(1)] * 99), loss_of, "test")


def test_draft_head_learns_from_the_frozen_model(
    stream: torch.Tensor, model_and_curve: tuple[Model, list[list[float]]]
) -> None:
    model = Model(SMALL)
    model.load_state_dict(model_and_curve[0].state_dict())
    sets = {"a": data.windows(stream, 64)[:4]}
    before = train_draft.acceptance(model, sets)["all"]
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    progress = train_draft.train(model, PLAN, data.batches(stream, 64, 4, seed=2), compiled=False)
    after = train_draft.acceptance(model, sets)
    assert progress.curve[-1][1] < 0.7 * progress.curve[0][1]
    assert after["all"]["drafts"] == after["a"]["drafts"] == 4 * 48
    assert after["all"]["accepted"][0] > before["accepted"][0] + 0.1
    accepted = after["all"]["accepted"]
    assert accepted == sorted(accepted, reverse=True), "a position counts only after those before it"
    for name, value in model.state_dict().items():
        unchanged = torch.equal(value, frozen[name])
        assert unchanged != name.startswith("mtp."), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_divergence() -> None:
    """Zero for a head that is the teacher; the textbook sum otherwise."""
    state, head = torch.randn(2, 3, 4), torch.randn(7, 4)
    teacher = state @ head.T
    assert float(train_draft.divergence(state, head, teacher)) == pytest.approx(0.0, abs=1e-6)
    other = torch.randn(2, 3, 7)
    p, q = other.softmax(-1), teacher.softmax(-1)
    expected = float((p * (p / q).log()).sum(-1).mean())
    assert expected > 0.1
    assert float(train_draft.divergence(state, head, other)) == pytest.approx(expected, rel=1e-4)


def test_command_runs_all_stages(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TESTBED", SMALL)
    out = tmp_path / "model"
    common = ["--corpus", str(text / "corpus.jsonl.xz"), "--heldout", str(text / "heldout.jsonl")]
    small = "--tokens 512 --draft-tokens 512 --calibration-tokens 512 --batch 2 --draft-batch 2 --length 64"
    arguments = ["train", "--out", str(out), *common, *small.split(), "--no-compile", "--commit", "abc"]
    assert main([*arguments, "--tokenizer", str(text)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration.json",
        "config.json",
        "draft_vocabulary.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "training.json",
    ]
    record = json.loads((out / "training.json").read_text())
    assert set(record) == {"seed", "data", "pretrain", "draft", "calibrate"}
    assert record["pretrain"]["tokens"] == 512
    assert record["pretrain"]["steps"] == 4
    assert set(record["pretrain"]["heldout"]["packages"]) == {"a", "b"}
    assert len(record["draft"]["acceptance"]["all"]["accepted"]) == 4
    assert record["data"]["corpus_sha256"] == sha256(text / "corpus.jsonl.xz")
    assert record["draft"]["commit"] == "abc"

    weights = (out / "model.safetensors").read_bytes()
    (out / "calibration.json").unlink()
    assert main([*arguments, "--stages", "calibrate"]) == 0, "a stage alone works from the folder"
    assert (out / "calibration.json").is_file()
    assert (out / "model.safetensors").read_bytes() == weights


def test_random_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TESTBED", SMALL)
    assert main(["train", "--random", "--out", str(tmp_path / "a")]) == 0
    assert main(["train", "--random", "--out", str(tmp_path / "b"), "--seed", "1"]) == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "x"], "--corpus"),
        (["train", "--out", "x", "--stages", "pretrain,sleep"], "no stage 'sleep'"),
        (["train", "--out", "x", "--tokens", "5Q"], "'5Q' is not a count"),
        (["train"], "--out"),
        (["paint"], "no command named 'paint'; the commands are: corpus, tokenizer, train"),
        (["train", "--out", "x", "--corpus", "none", "--heldout", "none"], "tokenizer"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gb10: error: ")
    assert message in error
    assert error.count("\n") == 1
