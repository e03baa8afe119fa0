"""Digests of calls: every operator has some, each call's inputs are its own, and a difference is told."""

from __future__ import annotations

import pytest
import torch

from gb10.kernels import moe_decode
from gb10_lab.kernel_bench import adapters, bits, shapes

CPU = torch.device("cpu")


def test_every_operator_of_the_library_is_called_and_names_are_unique() -> None:
    names = [name for name, _ in bits.calls(list(adapters.OPERATORS), CPU)]
    assert len(names) == len(set(names))
    assert {name.split(",")[0] for name in names} == {*adapters.OPERATORS, "bandwidth_read"}
    without = [name for name, _ in bits.calls(["nvfp4_gemv"], CPU)]
    assert [name for name in names if not name.startswith(("sparse24", "route_experts"))] == without


def test_a_digest_follows_the_output_and_not_the_calls_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    added = {"second": 0.0}

    def call(name: str) -> bits.Call:
        x = torch.randn(8, dtype=torch.bfloat16)
        return lambda: (x + added.get(name, 0.0), torch.ones(3, dtype=torch.uint8))

    def calls(names: list[str], _: torch.device) -> list[tuple[str, object]]:
        return [(name, lambda name=name: call(name)) for name in names]

    monkeypatch.setattr(bits, "calls", calls)
    all_three = bits.digests(["first", "second", "third"], CPU)
    assert len(set(all_three.values())) == 3
    assert bits.digests(["third"], CPU) == {"third": all_three["third"]}
    added["second"] = 1.0
    changed = bits.digests(["first", "second", "third"], CPU)
    assert bits.differences(changed, all_three) == ["second: other bits"]
    assert bits.differences(all_three, all_three) == []
    del changed["second"], all_three["first"]
    assert bits.differences(changed, all_three) == ["second: only in the other build", "first: only here"]


@pytest.mark.parametrize("activation", bits.ACTIVATIONS)
@pytest.mark.parametrize("swizzled", [False, True])
def test_the_layer_gets_what_the_operator_takes(
    activation: str, swizzled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[tuple[int, ...]], dict[str, object]]] = []

    def operator(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(([tuple(each.shape) for each in tensors], options))
        return tensors[0]

    monkeypatch.setattr(moe_decode, "moe_decode", operator)
    layer = shapes.Moe("any", "any", 8, 2, 64, 128, shared=64)
    bits._moe(layer, 3, activation, swizzled, CPU)()()
    shapes_of, options = seen[0]
    rows = 128 if activation.endswith("_no_mul") else 256
    assert shapes_of[:4] == [(3, 64), (8, rows, 32), (8, rows, 4), (8,)]
    assert shapes_of[4:7] == [(8, 64, 64), (8, 128 if swizzled else 64, 8), (8,)]
    assert options["swizzled"] is swizzled
    assert options["shared"] is not None
    assert (options["expert_map"] is not None) is swizzled
