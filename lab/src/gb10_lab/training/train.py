"""Make the model: pretraining, the draft head, calibration. Each stage reads and writes the model folder.

Reached with `python -m gb10_lab.testbed train`. One GPU is enough; a CPU does for small trials.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gb10.errors import UserError
from gb10.files import read_json, sha256, write_json
from torch import Tensor
from torch.nn import functional

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder")
    parser.add_argument("--random", action="store_true", help="write the untrained model, and stop")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="training text (.jsonl or .jsonl.xz)")
    parser.add_argument("--heldout", type=Path, metavar="FILE", help="validation text (.jsonl)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder with tokenizer.json (default: --out)"
    )
    parser.add_argument(
        "--stages", type=_stages, default=STAGES, metavar="A,B", help=f"of {','.join(STAGES)}; default: all"
    )
    parser.add_argument("--tokens", type=_count, default=300_000_000, metavar="N", help="pretraining: 300M")
    parser.add_argument(
        "--draft-tokens", type=_count, default=60_000_000, metavar="N", help="draft head: 60M"
    )
    parser.add_argument("--calibration-tokens", type=_count, default=100_000, metavar="N", help="100K")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="windows per step: %(default)s")
    parser.add_argument("--draft-batch", type=int, default=32, metavar="N", help="%(default)s")
    parser.add_argument(
        "--length", type=int, default=2048, metavar="N", help="tokens per window: %(default)s"
    )
    parser.add_argument("--rate", type=float, default=3e-3, metavar="X", help="learning rate: %(default)s")
    parser.add_argument("--draft-rate", type=float, default=2e-3, metavar="X", help="%(default)s")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="X", help="limit of pretraining")
    parser.add_argument(
        "--draft-minutes", type=float, default=60.0, metavar="X", help="limit of the draft head"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    parser.add_argument("--commit", default="", metavar="HASH", help="git commit, for the record")


def run(options: argparse.Namespace) -> int:
    """Run the stages that the options ask for. Returns 0. Raises UserError for input that can be mended."""
    if options.random:
        checkpoint.save(initialise(Model(TESTBED), options.seed), options.out)
        print(f"wrote an untrained model to {options.out}")
        return 0
    _Job(options).run()
    return 0


class _Job:
    def __init__(self, options: argparse.Namespace) -> None:
        if options.corpus is None or options.heldout is None:
            raise UserError("training needs --corpus and --heldout; make them with: corpus --help")
        self._options = options
        self._out: Path = options.out
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder: Path = options.tokenizer or options.out
        self._tokenizer = read_tokenizer(folder / TOKENIZER)
        self._arch = dataclasses.replace(TESTBED, vocabulary=self._tokenizer.get_vocab_size())
        self._out.mkdir(parents=True, exist_ok=True)
        if folder != self._out:
            for name in _TOKENIZER_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, self._out / name)
        self._stream = self._encode(options.corpus, options.seed)
        self._heldout = self._encode_heldout(options.heldout)

    def run(self) -> None:
        """Run all stages asked for. The record grows with each, so a later failure loses nothing."""
        record = self._record()
        for stage in self._options.stages:
            stages: dict[str, Callable[[], dict[str, Any]]] = {
                "pretrain": self._pretrain,
                "draft": self._draft,
                "calibrate": self._calibrate,
            }
            record[stage] = stages[stage]()
            record[stage]["machine"] = {"device": machine.name(self._device), **machine.versions()}
            record[stage]["commit"] = self._options.commit
            write_json(self._out / checkpoint.RECORD, record)

    def _record(self) -> dict[str, Any]:
        path = self._out / checkpoint.RECORD
        record: dict[str, Any] = read_json(path) if path.is_file() else {}
        record["seed"] = self._options.seed
        record["data"] = {
            "corpus_sha256": sha256(self._options.corpus),
            "corpus_tokens": len(self._stream),
            "heldout_sha256": sha256(self._options.heldout),
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
            length = min(self._options.length, len(stream) - 1)
            sets[package] = data.windows(stream, length)[:_HELDOUT_WINDOWS]
        return sets

    def _batches(self, plan: Plan) -> Any:
        return data.batches(self._stream.to(self._device), plan.length, plan.batch, plan.seed)

    def _load(self) -> Model:
        return checkpoint.load(self._out).to(self._device)

    def _pretrain(self) -> dict[str, Any]:
        options = self._options
        plan = Plan(
            tokens=options.tokens,
            batch=options.batch,
            length=options.length,
            rate=options.rate,
            minutes=options.minutes,
            seed=options.seed + _DATA_SEED,
        )
        model = initialise(Model(self._arch), options.seed).to(self._device)
        progress = pretrain(model, plan, self._batches(plan), compiled=not options.no_compile)
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
        options = self._options
        plan = Plan(
            tokens=options.draft_tokens,
            batch=options.draft_batch,
            length=options.length,
            rate=options.draft_rate,
            minutes=options.draft_minutes,
            seed=options.seed + _DRAFT_SEED,
        )
        model = self._load()
        progress = train_draft.train(model, plan, self._batches(plan), compiled=not options.no_compile)
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
        options = self._options
        counts = calibrate.draft_vocabulary(self._stream, self._arch.vocabulary)
        write_json(self._out / calibrate.DRAFT_VOCABULARY, counts, indent=None)
        data_of = data.batches(
            self._stream.to(self._device), options.length, _EVALUATION_BATCH, options.seed + _CALIBRATION_SEED
        )
        found = calibrate.calibrate(self._load(), data_of, options.calibration_tokens)
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


def _count(text: str) -> int:
    multiple = _MULTIPLES.get(text[-1:], 1)
    number = text if multiple == 1 else text[:-1]
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count such as 5000, 20M or 1G")
    return int(number) * multiple


def _stages(text: str) -> tuple[str, ...]:
    asked = text.split(",")
    for stage in asked:
        if stage not in STAGES:
            raise argparse.ArgumentTypeError(f"no stage {stage!r}; the stages are {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in asked)
