"""Make the model: pretraining, the draft head, calibration. Each stage reads and writes the model folder.

Reached with `python -m gb10_lab train`. One GPU is enough; a CPU does for small trials.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional
from typer import BadParameter, Option

from gb10.errors import UserError
from gb10.files import read_json, sha256, write_json
from gb10_lab import record as machine
from gb10_lab.testbed import checkpoint
from gb10_lab.testbed.architecture import TESTBED
from gb10_lab.testbed.model import Model, initialise, linear
from gb10_lab.text.documents import Document, read_documents
from gb10_lab.text.tokenizer import read_tokenizer
from gb10_lab.training import calibrate, data, train_draft
from gb10_lab.training.loop import Plan, Progress, optimise

STAGES = ("pretrain", "draft", "calibrate")
TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json")
_BALANCE_WEIGHT = 0.01
_HELDOUT_WINDOWS = 64
_EVALUATION_BATCH = 8
_DATA_SEED, _DRAFT_SEED, _CALIBRATION_SEED = 1, 2, 3
_MULTIPLES = {"K": 10**3, "M": 10**6, "G": 10**9}


def _count(given: Any) -> int:
    """A count such as 5000, 20M or 1G; in thousands, as training tokens are counted."""
    text = str(given)
    multiple = _MULTIPLES.get(text[-1:], 1)
    number = text if multiple == 1 else text[:-1]
    if not number.isdecimal() or int(number) < 1:
        raise BadParameter(f"{text!r} is not a count such as 5000, 20M or 1G")
    return int(number) * multiple


def _tokens_option(help: str) -> Any:
    return Option(parser=_count, metavar="N", help=help)


def run(
    out: Annotated[Path, Option(metavar="DIR", help="model folder")],
    random: Annotated[bool, Option("--random", help="write the untrained model, and stop")] = False,
    corpus: Annotated[Path | None, Option(metavar="FILE", help="training text (.jsonl or .jsonl.xz)")] = None,
    heldout: Annotated[Path | None, Option(metavar="FILE", help="validation text (.jsonl)")] = None,
    tokenizer: Annotated[
        Path | None, Option(metavar="DIR", help="folder with tokenizer.json; default: --out")
    ] = None,
    stages: Annotated[str, Option(metavar="A,B", help="stages to run")] = ",".join(STAGES),
    tokens: Annotated[int, _tokens_option("pretraining")] = 300_000_000,
    draft_tokens: Annotated[int, _tokens_option("draft head")] = 60_000_000,
    calibration_tokens: Annotated[int, _tokens_option("calibration")] = 100_000,
    batch: Annotated[int, Option(metavar="N", help="windows per step")] = 64,
    draft_batch: Annotated[int, Option(metavar="N", help="the same for the draft head")] = 32,
    length: Annotated[int, Option(metavar="N", help="tokens per window")] = 2048,
    rate: Annotated[float, Option(metavar="X", help="learning rate")] = 3e-3,
    draft_rate: Annotated[float, Option(metavar="X", help="the same for the draft head")] = 2e-3,
    minutes: Annotated[float, Option(metavar="X", help="limit of pretraining")] = 60.0,
    draft_minutes: Annotated[float, Option(metavar="X", help="limit of the draft head")] = 60.0,
    seed: Annotated[int, Option(metavar="N")] = 0,
    no_compile: Annotated[bool, Option("--no-compile", help="do without torch.compile")] = False,
    commit: Annotated[str, Option(metavar="HASH", help="git commit, for the record")] = "",
) -> int:
    """Train the model and its draft head, and calibrate it."""
    if random:
        checkpoint.save(initialise(Model(TESTBED), seed), out)
        print(f"wrote an untrained model to {out}")
        return 0
    asked = stages.split(",")
    for stage in asked:
        if stage not in STAGES:
            raise UserError(f"--stages: no stage {stage!r}; the stages are {', '.join(STAGES)}")
    if corpus is None or heldout is None:
        raise UserError("training needs --corpus and --heldout; make them with: corpus --help")
    recipe = _Recipe(
        out=out,
        corpus=corpus,
        heldout=heldout,
        tokenizer=tokenizer or out,
        pretrain=Plan(tokens, batch, length, rate, minutes, seed + _DATA_SEED),
        draft=Plan(draft_tokens, draft_batch, length, draft_rate, draft_minutes, seed + _DRAFT_SEED),
        calibration_tokens=calibration_tokens,
        seed=seed,
        compiled=not no_compile,
        commit=commit,
    )
    _Job(recipe).run([stage for stage in STAGES if stage in asked])
    return 0


@dataclass(frozen=True)
class _Recipe:
    out: Path
    corpus: Path
    heldout: Path
    tokenizer: Path
    pretrain: Plan
    draft: Plan
    calibration_tokens: int
    seed: int
    compiled: bool
    commit: str


class _Job:
    def __init__(self, recipe: _Recipe) -> None:
        self._recipe = recipe
        self._out = recipe.out
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = read_tokenizer(recipe.tokenizer / TOKENIZER)
        self._arch = replace(TESTBED, vocabulary=self._tokenizer.get_vocab_size())
        self._out.mkdir(parents=True, exist_ok=True)
        if recipe.tokenizer != self._out:
            for name in _TOKENIZER_FILES:
                if (recipe.tokenizer / name).is_file():
                    shutil.copyfile(recipe.tokenizer / name, self._out / name)
        self._stream = self._encode(recipe.corpus, recipe.seed)
        self._heldout = self._encode_heldout(recipe.heldout)

    def run(self, asked: Sequence[str]) -> None:
        """Run all stages asked for. The record grows with each, so a later failure loses nothing."""
        record = self._record()
        for stage in asked:
            stages: dict[str, Callable[[], dict[str, Any]]] = {
                "pretrain": self._pretrain,
                "draft": self._draft,
                "calibrate": self._calibrate,
            }
            record[stage] = stages[stage]()
            record[stage]["machine"] = {"device": machine.name(self._device), **machine.versions()}
            record[stage]["commit"] = self._recipe.commit
            write_json(self._out / checkpoint.RECORD, record)

    def _record(self) -> dict[str, Any]:
        path = self._out / checkpoint.RECORD
        record: dict[str, Any] = read_json(path) if path.is_file() else {}
        record["seed"] = self._recipe.seed
        record["data"] = {
            "corpus_sha256": sha256(self._recipe.corpus),
            "corpus_tokens": len(self._stream),
            "heldout_sha256": sha256(self._recipe.heldout),
            "tokenizer_sha256": sha256(self._out / TOKENIZER),
        }
        return record

    def _encode(self, path: Path, seed: int) -> Tensor:
        documents = data.shuffled(list(read_documents(path)), seed)
        stream = data.encode(self._tokenizer, documents)
        print(f"corpus: {len(documents)} documents, {len(stream)} tokens", flush=True)
        return stream

    def _encode_heldout(self, path: Path) -> dict[str, Tensor]:
        packages: dict[str, list[Document]] = {}
        for document in read_documents(path):
            packages.setdefault(document.package, []).append(document)
        sets = {}
        for package, documents in sorted(packages.items()):
            stream = data.encode(self._tokenizer, documents)
            length = min(self._recipe.pretrain.length, len(stream) - 1)
            sets[package] = data.windows(stream, length)[:_HELDOUT_WINDOWS]
        return sets

    def _batches(self, plan: Plan) -> Any:
        return data.batches(self._stream.to(self._device), plan.length, plan.batch, plan.seed)

    def _load(self) -> Model:
        return checkpoint.load(self._out).to(self._device)

    def _pretrain(self) -> dict[str, Any]:
        plan = self._recipe.pretrain
        model = initialise(Model(self._arch), self._recipe.seed).to(self._device)
        progress = pretrain(model, plan, self._batches(plan), compiled=self._recipe.compiled)
        unrounded = evaluate(model, self._heldout)
        checkpoint.round_to_bf16(model)
        checkpoint.save(model, self._out)
        rounded = evaluate(model, self._heldout)
        print(f"held-out loss {rounded['loss']:.4f} ({unrounded['loss']:.4f} before rounding)", flush=True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {
            "parameters": parameters,
            **progress.record(plan),
            "balance_weight": _BALANCE_WEIGHT,
            "heldout": rounded,
            "heldout_before_rounding": unrounded["loss"],
        }

    def _draft(self) -> dict[str, Any]:
        plan = self._recipe.draft
        model = self._load()
        progress = train_draft.train(model, plan, self._batches(plan), compiled=self._recipe.compiled)
        checkpoint.round_to_bf16(model)
        checkpoint.save(model, self._out)
        acceptance = train_draft.acceptance(model, self._heldout)
        accepted = "  ".join(f"{share:.3f}" for share in acceptance["all"]["accepted"])
        print(f"held-out acceptance by position: {accepted}", flush=True)
        return {
            **progress.record(plan),
            "draft_steps": train_draft.STEPS,
            "step_weights": train_draft.WEIGHTS,
            "acceptance": acceptance,
        }

    def _calibrate(self) -> dict[str, Any]:
        recipe = self._recipe
        counts = calibrate.draft_vocabulary(self._stream, self._arch.vocabulary)
        write_json(self._out / calibrate.DRAFT_VOCABULARY, counts, indent=None)
        data_of = data.batches(
            self._stream.to(self._device),
            recipe.pretrain.length,
            _EVALUATION_BATCH,
            recipe.seed + _CALIBRATION_SEED,
        )
        found = calibrate.calibrate(self._load(), data_of, recipe.calibration_tokens)
        write_json(self._out / checkpoint.CALIBRATION, found)
        return {"tokens": found["tokens"], "sites": len(found["amax"])}


def pretrain(model: Model, plan: Plan, batches: Any, *, compiled: bool) -> Progress:
    """Train the main model in place on batches of int64 [batch, length + 1]; the draft head stays."""
    loss = next_token_loss
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        loss = torch.compile(next_token_loss, dynamic=False)
    torch.set_float32_matmul_precision("high")
    model.compute = torch.bfloat16

    def loss_of(window: Tensor) -> tuple[Tensor, Tensor]:
        hidden, balance = model.hidden(window[:, :-1])
        found = loss(hidden, model.lm_head.weight, window[:, 1:])
        return found + _BALANCE_WEIGHT * balance, found

    main = [(name, value) for name, value in model.named_parameters() if not name.startswith("mtp.")]
    progress = optimise(plan, main, model.arch.head_dim, batches, loss_of, "pretrain")
    model.compute = None
    return progress


def next_token_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token. `hidden` [B, T, hidden], `targets` int64 [B, T]."""
    logits = linear(hidden, head).flatten(0, 1).to(head.dtype)
    return functional.cross_entropy(logits, targets.flatten())


def evaluate(model: Model, sets: dict[str, Tensor]) -> dict[str, Any]:
    """Give the loss of each package's windows (int64 [n, length + 1]), and over all tokens. In float32."""
    torch.set_float32_matmul_precision("highest")
    packages = {}
    total = count = 0.0
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for package, windows in sets.items():
            loss = 0.0
            for window in torch.split(windows.to(model.lm_head.weight.device), _EVALUATION_BATCH):
                found = next_token_loss(model(window[:, :-1]), model.lm_head.weight, window[:, 1:])
                loss += float(found) * window[:, 1:].numel()
            tokens = windows[:, 1:].numel()
            packages[package] = {"tokens": tokens, "loss": round(loss / tokens, 5)}
            total, count = total + loss, count + tokens
    return {"loss": round(total / count, 5), "packages": packages}
