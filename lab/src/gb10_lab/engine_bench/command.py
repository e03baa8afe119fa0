"""Command lines: `python -m gb10_lab engine-bench --config NAME` and `engine-compare RUN...`."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from gb10.arguments import json_object, whole
from gb10.errors import EXIT_FAILED, UserError
from gb10.files import read_json, write_json
from gb10_lab.engine_bench import compilers, configurations, models, report
from gb10_lab.engine_bench.profile import step_of, write

if TYPE_CHECKING:
    from gb10_lab.engine_bench.session import Session

PARTS = ("decode", "resident", "profile", "host", "prefill", "logp")


def run(
    config: Annotated[str, Option(metavar="NAME", help=f"one of {', '.join(configurations.CONFIGURATIONS)}")],
    out: Annotated[Path, Option(metavar="FOLDER", help="NAME.json, NAME.txt and the profiles go there")],
    model: Annotated[
        str,
        Option(metavar="NAME|DIR", help=f"a folder with config.json, or one of {', '.join(models.MODELS)}"),
    ] = "qwen3-next-80b",
    layers: Annotated[
        int | None, Option(parser=whole(1), metavar="N", help="the first N layers; default: all")
    ] = None,
    batches: Annotated[
        list[int] | None, Option(parser=whole(1), metavar="N...", help="requests at a time; default: 1 4 16")
    ] = None,
    do: Annotated[
        list[str] | None, Option(metavar="PART...", help=f"some of {', '.join(PARTS)}; default: all but logp")
    ] = None,
    repeats: Annotated[int, Option(parser=whole(1), metavar="N", help="of each measurement")] = 7,
    limit: Annotated[
        float, Option(metavar="SECONDS", help="begin nothing more after this time; the exit status is 1")
    ] = math.inf,
    engine: Annotated[str, Option(metavar="JSON", help="more arguments of vllm.LLM; they win")] = "{}",
    name: Annotated[
        str | None, Option("--name", metavar="NAME", help="name of the files; default: --config")
    ] = None,
    join: Annotated[
        bool,
        Option(
            "--join",
            help="be a further node of an engine on several (--engine says which), and measure nothing",
        ),
    ] = False,
    commit: Annotated[str, Option(metavar="NAME", help="what is measured, for the record")] = "unknown",
) -> int:
    """Measure one configuration of vLLM: decoding, prefill, GPU time, launches, bytes, the processor's share.

    The model's weights are seeded noise of sane magnitudes. The exit status is 1 when a part failed or was
    left out.
    """
    chosen = configurations.choose(config)
    wanted = tuple(do or PARTS[:-1])
    for part in wanted:
        if part not in PARTS:
            raise UserError(f"--do {part}: choose from {', '.join(PARTS)}")
    extra = json_object("--engine", engine)
    began = _process_start()
    folder, overrides = _model(model, layers)
    if join:
        return _join(chosen, folder, overrides | extra)
    return _measure(
        chosen, out, name or config, folder, overrides | extra, wanted,
        tuple(batches or (1, 4, 16)), repeats, limit, began, commit,
    )  # fmt: skip


def _join(chosen: configurations.Configuration, folder: Path, extra: dict[str, Any]) -> int:
    from gb10_lab.engine_bench import session

    session.prepare(chosen)
    session.join(folder, chosen, extra)
    return 0


def _measure(
    chosen: configurations.Configuration,
    out: Path,
    name: str,
    folder: Path,
    extra: dict[str, Any],
    wanted: tuple[str, ...],
    batches: tuple[int, ...],
    repeats: int,
    limit: float,
    began: float,
    commit: str,
) -> int:
    from gb10_lab.engine_bench import session

    session.prepare(chosen)
    engine = session.Session(folder, chosen, extra)
    ready = time.time() - began
    engine.generate(1, 1)
    answered = time.time() - began
    compiled = compilers.made_since(began)
    print(
        f"ready after {ready:.1f} s, first answer after {answered:.1f} s, compiled: {compiled.words}",
        flush=True,
    )
    import torch
    import vllm

    from gb10_lab import record

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    config = read_json(folder / "config.json")
    content: dict[str, Any] = {
        "schema": report.SCHEMA,
        "configuration": asdict(chosen),
        "device": {"driver": record.UNKNOWN, **record.machine(device), "vllm": vllm.__version__},
        "commit": commit,
        "date": record.today(),
        "command": record.command(),
        "layers": extra.get("hf_overrides", {}).get("num_hidden_layers", config.get("num_hidden_layers")),
        "engine": engine.arguments(),
        "start": {
            "ready_seconds": round(ready, 1),
            "first_answer_seconds": round(answered, 1),
            "compiled": compiled.content(),
        },
        "failures": [],
        "skipped": [],
    }
    works = _works(engine, content, wanted, batches, repeats, config["vocab_size"], out, name)
    for part, work in works:
        if time.time() - began > limit:
            content["skipped"].append(part)
            continue
        at = time.perf_counter()
        try:
            work()
        except Exception as error:
            # One part that fails must not take what the others would have measured.
            traceback.print_exc()
            first = next(iter(str(error).splitlines()), repr(error))
            content["failures"].append(f"{part}: {first}")
        print(f"{part}: {time.perf_counter() - at:.1f} s", flush=True)
        content |= {"peak_bytes": engine.peak_bytes(), "dispatched": engine.dispatched()}
        write_json(out / f"{name}.json", content, indent=None)
    text = report.table(content)
    (out / f"{name}.txt").write_text(text, encoding="utf-8")
    print(text)
    if content["skipped"]:
        print(f"left out, no time: {', '.join(content['skipped'])}")
    return EXIT_FAILED if content["failures"] or content["skipped"] else 0


def _works(
    engine: Session,
    content: dict[str, Any],
    wanted: tuple[str, ...],
    batches: tuple[int, ...],
    repeats: int,
    vocabulary: int,
    out: Path,
    name: str,
) -> list[tuple[str, Callable[[], None]]]:
    """The measurements in the order of their worth, each putting its result into ``content``."""
    works: list[tuple[str, Callable[[], None]]] = []

    def decode(batch: int) -> None:
        row = engine.decode(batch, repeats)
        content.setdefault("decode", []).append(row)
        rate = row["tokens_per_second"]
        print(
            f"batch {batch}: {rate['median']:.1f} tok/s ({rate['least']:.1f} to {rate['most']:.1f}), graph "
            f"{row['graph_ms']['median'] if row['graph_ms'] else math.nan:.3f} ms",
            flush=True,
        )

    def profile(batch: int) -> None:
        events = engine.profile(batch)
        write(events, out / f"{name}.profile-{batch}.json.gz")
        step = step_of(events)
        if step is None:
            raise UserError("the profiler saw no CUDA graphs; is the engine eager?")
        content.setdefault("profile", []).append({"batch": batch, **asdict(step)})

    def resident() -> None:
        parts, state = engine.resident()
        content["resident"] = {"components": [asdict(part) for part in parts], "state_bytes": state}

    def host(batch: int) -> None:
        row = engine.host_floor(batch)
        if row is None:
            raise UserError("no CUDA graph of a whole step was replayed")
        content.setdefault("host_floor", []).append(row)

    def prefill() -> None:
        content["prefill"] = engine.prefill(repeats)

    def log_probabilities() -> None:
        content["log_probabilities"] = engine.log_probabilities(vocabulary)

    first, *others = batches
    if "decode" in wanted:
        works.append((f"decode {first}", partial(decode, first)))
    if "resident" in wanted:
        works.append(("resident", resident))
    if "profile" in wanted:
        works.append((f"profile {first}", partial(profile, first)))
    if "host" in wanted:
        works.append((f"host {first}", partial(host, first)))
    if "decode" in wanted:
        works += [(f"decode {batch}", partial(decode, batch)) for batch in others]
    if "prefill" in wanted:
        works.append(("prefill", prefill))
    if "profile" in wanted and others:
        works.append((f"profile {others[-1]}", partial(profile, others[-1])))
    if "logp" in wanted:
        works.append(("logp", log_probabilities))
    return works


def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN.json...", help="what engine-bench wrote")],
    out: Annotated[Path | None, Option(metavar="FILE", help="write the table there too")] = None,
) -> int:
    """Set runs of engine-bench beside each other: ratios to the best stock run, and what must be reached."""
    contents = [read_json(path) for path in runs]
    for path, content in zip(runs, contents, strict=True):
        if not isinstance(content, dict) or content.get("schema") != report.SCHEMA:
            raise UserError(f"{path} is no run of engine-bench of this version")
    text = report.compare(contents, [path.stem for path in runs])
    print(text, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return 0


def _model(model: str, layers: int | None) -> tuple[Path, dict[str, Any]]:
    """The model's folder, and what must be said to vLLM for ``layers``."""
    folder = Path(model)
    if not (folder / "config.json").is_file():
        return models.write(model, compilers.cache("VLLM_CACHE_ROOT") / "gb10-engine-bench", layers), {}
    return folder.resolve(), {"hf_overrides": {"num_hidden_layers": layers}} if layers else {}


def _process_start() -> float:
    """When this process began, in seconds of `time.time`: what Python imports first counts too."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    return float(psutil.Process().create_time())
