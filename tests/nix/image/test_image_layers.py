"""Which store paths lie in which layer."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

GRAPH = {
    "env": frozenset({"torch", "small", "ours", "libc"}),
    "ours": frozenset({"libc"}),
    "torch": frozenset({"libc", "cuda"}),
    "cuda": frozenset({"libc"}),
    "small": frozenset({"libc"}),
    "libc": frozenset[str](),
}


def nested(*groups: list[str]) -> list[Any]:
    """The pipeline that nix/image makes of groups."""
    steps: list[Any] = []
    for group in reversed(groups):
        rest = [["over", "rest", ["pipe", steps]]] if steps else []
        steps = [["subcomponent_out", group], *rest]
    return steps


def test_a_group_has_what_it_needs_and_no_earlier_group_has(layering: ModuleType) -> None:
    found = layering.apply(["pipe", nested(["libc"], ["torch"], ["small"])], GRAPH)
    assert list(layering.layers(found)) == [["libc"], ["cuda", "torch"], ["small"], ["env", "ours"]]


def test_nothing_is_lost_and_nothing_is_there_twice(layering: ModuleType) -> None:
    found = layering.apply(["pipe", nested(["cuda"], ["torch", "not there"], ["env"], ["libc"])], GRAPH)
    paths = [path for layer in layering.layers(found) for path in layer]
    assert sorted(paths) == sorted(GRAPH)
    assert [] not in list(layering.layers(found))


def test_an_unknown_word_is_said(layering: ModuleType) -> None:
    with pytest.raises(ValueError, match="popularity_contest"):
        layering.apply(["pipe", [["popularity_contest"]]], GRAPH)


def test_the_graph_is_read_as_nix_writes_it(layering: ModuleType) -> None:
    text = "/nix/store/b\n/nix/store/b.drv\n2\n/nix/store/a\n/nix/store/b\n/nix/store/a\n\n0\n"
    assert layering.read_graph(text) == {"/nix/store/b": {"/nix/store/a"}, "/nix/store/a": frozenset()}
