"""gb10::route_experts without a GPU: schema, refusals, fake tensors, machine code, the kernel on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest

Arguments = dict[str, Any]


@pytest.fixture
def good(operators: None) -> Arguments:
    """Arguments that only their device speaks against."""
    import torch

    def numbers(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.bfloat16)

    return {
        "x": numbers(2, 256),
        "residual": numbers(2, 256),
        "norm_weight": numbers(256),
        "epsilon": 1e-6,
        "norm_plus_one": True,
        "gate_weight": numbers(10, 256),
        "shared_gate_weight": numbers(1, 256),
        "renormalise": True,
        "workspace": torch.zeros(2 * 12 * 4, dtype=torch.uint8),
        "topk_ids": torch.zeros(2, 4, dtype=torch.int32),
        "topk_weights": torch.zeros(2, 4),
        "shared_multiplier": torch.zeros(2),
        "normed": numbers(2, 256),
        "residual_out": numbers(2, 256),
    }


def refusal(arguments: Arguments) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.route_experts(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::route_experts:" in line)


def test_the_schema_names_what_is_written(good: Arguments) -> None:
    import torch

    schema = torch.ops.gb10.route_experts.default._schema
    assert [argument.name for argument in schema.arguments] == list(good)
    written = [argument.name for argument in schema.arguments if argument.alias_info is not None]
    assert written == [*list(good)[8:]] and not schema.returns


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"residual": None},
        {"normed": None, "residual_out": None},
        dict.fromkeys(["shared_gate_weight", "shared_multiplier"]),
        dict.fromkeys(["residual", "norm_weight", "normed", "residual_out"]),
    ],
    ids=lambda change: ", ".join(change) or "all",
)
def test_a_cpu_tensor_is_refused_last(good: Arguments, change: Arguments) -> None:
    assert "x is not on a CUDA device" in refusal({**good, **change})


def test_other_forms_are_taken(good: Arguments) -> None:
    change = {
        "shared_gate_weight": good["shared_gate_weight"][0],
        "shared_multiplier": good["topk_weights"][:, :1],
    }
    assert "shared_multiplier is not contiguous" in refusal({**good, **change})
    change["shared_multiplier"] = change["shared_multiplier"].contiguous()
    assert "x is not on a CUDA device" in refusal({**good, **change})


def aside(tensor: Any) -> Any:
    """The same values, two bytes away from a multiple of 16."""
    import torch

    memory = torch.zeros(tensor.numel() * tensor.element_size() + 32, dtype=torch.uint8)
    start = (2 - memory.data_ptr()) % 16
    piece = memory[start : start + tensor.numel() * tensor.element_size()]
    return piece.view(tensor.dtype).view(tensor.shape)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("norm_weight", lambda _: None, "residual, normed or residual_out is given without norm_weight"),
    ("shared_multiplier", lambda _: None, "of shared_gate_weight and shared_multiplier one is given"),
    ("epsilon", lambda _: -1.0, "epsilon is -1.000000; it must be 0 or more"),
    ("epsilon", lambda _: float("nan"), "epsilon is nan; it must be 0 or more"),
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("residual", lambda t: t.half(), "residual is float16; it must be bfloat16"),
    ("norm_weight", lambda t: t.float(), "norm_weight is float32; it must be bfloat16"),
    ("gate_weight", lambda t: t.float(), "gate_weight is float32; it must be bfloat16"),
    ("shared_gate_weight", lambda t: t.half(), "shared_gate_weight is float16; it must be bfloat16"),
    ("workspace", lambda t: t.int(), "workspace is int32; it must be uint8"),
    ("topk_ids", lambda t: t.long(), "topk_ids is int64; it must be int32"),
    ("topk_weights", lambda t: t.bfloat16(), "topk_weights is bfloat16; it must be float32"),
    ("shared_multiplier", lambda t: t.bfloat16(), "shared_multiplier is bfloat16; it must be float32"),
    ("normed", lambda t: t.half(), "normed is float16; it must be bfloat16"),
    ("residual_out", lambda t: t.half(), "residual_out is float16; it must be bfloat16"),
    ("x", lambda t: t[:0], "x has 0 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.repeat(9, 1), "x has 18 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t[:, :128].contiguous(), "x has 128 columns (K); K must be a multiple of 256"),
    ("x", lambda t: t.repeat(1, 33), "x has 8448 columns (K); K must be a multiple of 256, at most 8192"),
    (
        "gate_weight",
        lambda t: t[:, :64].contiguous(),
        "gate_weight has shape [10, 64]; it must be [any, 256]",
    ),
    ("gate_weight", lambda t: t[:0], "gate_weight has 0 rows (experts); it must have 1 to 1024"),
    ("gate_weight", lambda t: t.repeat(103, 1), "gate_weight has 1030 rows (experts); it must have"),
    ("gate_weight", lambda t: t[:3], "topk_ids has 4 columns (topk); it must have 1 to 3"),
    ("topk_ids", lambda t: t[:, :0], "topk_ids has 0 columns (topk); it must have 1 to 10"),
    ("topk_ids", lambda t: t[:1], "topk_ids has shape [1, 4]; it must be [2, any]"),
    ("topk_weights", lambda t: t[:, :3].contiguous(), "topk_weights has shape [2, 3]; it must be [2, 4]"),
    ("residual", lambda t: t[:1], "residual has shape [1, 256]; it must be [2, 256]"),
    ("norm_weight", lambda t: t[:64], "norm_weight has shape [64]; it must be [256]"),
    ("shared_gate_weight", lambda t: t.repeat(2, 1), "shared_gate_weight has shape [2, 256]; it must be"),
    ("shared_multiplier", lambda t: t[:1], "shared_multiplier has shape [1]; it must be [2]"),
    ("normed", lambda t: t[:1], "normed has shape [1, 256]; it must be [2, 256]"),
    ("residual_out", lambda t: t[:1], "residual_out has shape [1, 256]; it must be [2, 256]"),
    ("workspace", lambda t: t[:-1], "workspace has 95 bytes; it must have at least 96"),
    ("x", lambda t: t.T.contiguous().T, "x is not contiguous"),
    ("gate_weight", lambda t: t.T.contiguous().T, "gate_weight is not contiguous"),
    ("topk_ids", lambda t: t.T.contiguous().T, "topk_ids is not contiguous"),
    *(
        (name, aside, f"{name} does not begin at a multiple of 16 bytes")
        for name in ("x", "residual", "norm_weight", "gate_weight", "workspace", "normed", "residual_out")
    ),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: Arguments, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


@pytest.mark.parametrize("written", ["normed", "residual_out"])
@pytest.mark.parametrize("read", ["x", "residual"])
def test_an_output_in_the_memory_of_an_input_is_refused(good: Arguments, written: str, read: str) -> None:
    import torch

    both = torch.zeros(3, 256, dtype=torch.bfloat16)
    assert f"{written} and {read} share memory" in refusal({**good, written: good[read]})
    assert f"{written} and {read} share memory" in refusal({**good, written: both[:2], read: both[1:]})
    assert "x is not on a CUDA device" in refusal({**good, written: both[:2]})


def test_fake_tensors_pass_and_give_the_shape(good: Arguments) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gb10.kernels.moe_router import Norm, route_experts, workspace_bytes

    names = ("x", "gate_weight", "norm_weight", "residual", "shared_gate_weight")
    x, gate, weight, residual, shared = (good[name] for name in names)
    with pytest.raises(RuntimeError, match="not on a CUDA device"):
        route_experts(x, gate, 4, renormalise=True)
    with FakeTensorMode() as mode:
        x, gate, weight, residual, shared = (
            mode.from_tensor(each) for each in (x, gate, weight, residual, shared)
        )
        norm = Norm(weight, 1e-6, True, residual)
        routed = route_experts(x, gate, 4, renormalise=True, norm=norm, shared_gate_weight=shared)
        plain = route_experts(x, gate, 4, renormalise=True)
    shapes = [None if each is None else tuple(each.shape) for each in routed]
    assert shapes == [(2, 4), (2, 4), (2,), (2, 256), (2, 256)]
    assert plain.normed is x and plain.residual is None and plain.shared_multiplier is None
    assert workspace_bytes(2, 10) == good["workspace"].numel()


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """No local memory; the gate's rows are read before the wait; no fence; keys and matrix instructions."""
    kernels = {name: code for name, code in machine_code.items() if "10moe_router" in name}
    assert len(kernels) == 10 * len({name.split()[0] for name in kernels})
    for name, code in kernels.items():
        assert not [line for line in code if re.search(r"\b(LDL|STL|MEMBAR)\b", line)], name
        held = 4 if "Li16E" in name else 8  # of 64 pieces, by 16 or 8 warps
        wait = max(i for i, line in enumerate(code) if "ACQBULK" in line)
        rows = [i for i, line in enumerate(code) if "LDG.E.NA.LTC256B.128" in line]
        assert len([i for i in rows if i < wait]) == held, name
        assert len([line for line in code if "HMMA.16816.F32" in line]) == 2 * held, name
        assert [line for line in code if "REDUX.MAX" in line], name


def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """Norm, sums, keys, ties, top-k, indices and barriers; shapes of the models and odd ones."""
    printed = on_the_host.run("moe_router", tmp_path, toolkit)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
