"""Which store paths lie in which layer of an image: what stream.py reads.

usage: layers.py BASE.graph ROOT.graph BASE ROOT PIPELINE.json

The graphs are Nix's exportReferencesGraph. The pipeline is a list of steps, as nixpkgs' dockerTools has
them; of its words there are ``subcomponent_out``, ``over`` and ``pipe``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Graph = dict[str, frozenset[str]]
"""Store paths and what each refers to, itself left out."""


def read_graph(text: str) -> Graph:
    """What Nix writes: for each path itself, its deriver, the number of its references, and these."""
    lines = iter(text.splitlines())
    graph = {}
    for path in lines:
        next(lines)
        graph[path] = frozenset(next(lines) for _ in range(int(next(lines)))) - {path}
    return graph


def reachable(graph: Graph, roots: list[str]) -> set[str]:
    """The paths that are found from the roots, with these."""
    found: set[str] = set()
    todo = [root for root in roots if root in graph]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += graph[path] & graph.keys()
    return found


def subcomponent_out(graph: Graph, roots: list[str]) -> dict[str, Graph]:
    """``main``: what is found from the roots. ``rest``: the others."""
    main = reachable(graph, roots)
    return {
        "main": {path: refs for path, refs in graph.items() if path in main},
        "rest": {path: refs for path, refs in graph.items() if path not in main},
    }


def apply(step: list[Any], data: Any) -> Any:
    """One step of a pipeline."""
    match step:
        case ["subcomponent_out", roots]:
            return subcomponent_out(data, roots)
        case ["over", part, inner]:
            return data | {part: apply(inner, data[part])} if part in data else data
        case ["pipe", steps]:
            for inner in steps:
                data = apply(inner, data)
            return data
    raise ValueError(f"the layering pipeline has a step that is not known here: {step}")


def layers(data: Any) -> Iterator[list[str]]:
    """The graphs of a pipeline's result, in their order: sorted paths. Empty ones are none."""
    if any(isinstance(value, dict) for value in data.values()):
        for value in data.values():
            yield from layers(value)
    elif data:
        yield sorted(data)


def main(arguments: list[str]) -> None:
    """Print the configuration of an image with its layers."""
    base_graph, root_graph, base, root, pipeline = arguments
    graph: Graph = {}
    for file in (base_graph, root_graph):
        graph |= read_graph(Path(file).read_text())
    # What only describes the image is not in it.
    described = {base, root}
    graph = {path: refs - described for path, refs in graph.items() if path not in described}
    steps = json.loads(Path(pipeline).read_text())
    result = {
        **json.loads(Path(base).read_text()),
        "root": root,
        "store_layers": list(layers(apply(["pipe", steps], graph))),
    }
    json.dump(result, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
