"""Command line: `python -m gb10_lab two-nodes MODEL --out FOLDER`, which lab/cluster/netns.sh starts."""

import json
import os
import platform
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

from typer import Argument, Option

from gb10.arguments import whole
from gb10.errors import EXIT_FAILED, UserError
from gb10_lab import record
from gb10_lab.two_nodes import table
from gb10_lab.two_nodes.cases import FAULTS, FORMS, Bench, Place


def run(
    model: Annotated[Path, Argument(metavar="MODEL", help="folder of the model")],
    out: Annotated[Path, Option(metavar="FOLDER", help="runs.json and the logs go there")],
    other: Annotated[str, Option(metavar="NAMESPACE", help="where the other node is; this one has the head")],
    addresses: Annotated[tuple[str, str], Option(metavar="HEAD OTHER", help="of the two nodes")],
    devices: Annotated[tuple[str, str], Option(metavar="HEAD OTHER", help="network devices of the two")],
    server: Annotated[str, Option(help="`gb10` or `vllm`: serve of that, with the plug-in")] = "gb10",
    split: Annotated[str, Option(help="`tensor` or `pipeline` parallel")] = "tensor",
    executor: Annotated[str, Option(help="`mp` or `ray` joins the nodes (gb10 with Ray)")] = "mp",
    cases: Annotated[
        list[str] | None, Option("--case", metavar="NAME...", help="forms and faults; left out, all")
    ] = None,
    limit: Annotated[int, Option(parser=whole(1), metavar="SECONDS", help="for the end after a fault")] = 60,
    slow: Annotated[
        tuple[float, float], Option(metavar="MS MBIT", help="the slow cable: one way, and its rate")
    ] = (20.0, 10.0),
) -> int:
    """Serve a model on two nodes, compare tokens, and break one thing at a time."""
    wanted = cases or [*FORMS, *FAULTS]
    if unknown := [case for case in wanted if case not in FORMS and case not in FAULTS]:
        raise UserError(f"there is no case {unknown[0]}; there are {', '.join([*FORMS, *FAULTS])}")
    if executor not in ("mp", "ray") or (executor == "ray" and server != "gb10"):
        raise UserError("--executor is mp, or ray for --server gb10")
    if server not in ("gb10", "vllm") or split not in ("tensor", "pipeline"):
        raise UserError("--server is gb10 or vllm, and --split is tensor or pipeline")
    # Ended by a signal, it still ends what it started.
    signal.signal(signal.SIGTERM, _leave)
    out.mkdir(parents=True, exist_ok=True)
    places = (Place(None, addresses[0], devices[0]), Place(other, addresses[1], devices[1]))
    bench = Bench(model, out, places, server, split, float(limit), slow, executor)
    content: dict[str, Any] = {
        "schema": 1,
        "what": f"{server} serve on two nodes, {split} parallel, in two network namespaces of one machine",
        "executor": executor,
        "device": {"name": _processor(), "processors": os.cpu_count(), "kernel": platform.release()},
        "commit": os.environ.get("GB10_COMMIT", record.UNKNOWN),
        "date": record.today(),
        "command": record.command(),
        "versions": record.versions(),
        "model": model.name,
        "runs": [],
    }
    failed = 0
    for case in wanted:
        print(f"== {case}", flush=True)
        with _restored(places):
            try:
                row = bench.form(case) if case in FORMS else bench.fault(case)
            except (RuntimeError, OSError) as error:
                failed += 1
                row = {"case": case, "failed": str(error)}
        print(json.dumps(row), flush=True)
        content["runs"].append(row)
        (out / "runs.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    print("\n".join(table.lines(content["runs"])))
    return EXIT_FAILED if failed else 0


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _restored(places: tuple[Place, Place]) -> Iterator[None]:
    """What a fault did to the network is undone."""
    try:
        yield
    finally:
        for place in places:
            subprocess.run([*place.within, "iptables", "-F", "INPUT"], check=True)
            subprocess.run([*place.within, "ip", "link", "set", place.device, "up"], check=True)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
