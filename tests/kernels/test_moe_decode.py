"""gb10::moe_decode without a GPU: schema, refusals, fake tensors, machine code, the kernels on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest

KERNELS = Path(__file__).parents[2] / "kernels"

Arguments = dict[str, Any]


@pytest.fixture
def good(operators: None) -> Arguments:
    """Arguments that only their device speaks against."""
    import torch

    def codes(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.uint8)

    def scales(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.float8_e4m3fn)

    return {
        "x": torch.zeros(2, 192, dtype=torch.bfloat16),
        "w13": codes(3, 384, 96),
        "w13_scales": scales(3, 384, 12),
        "w13_global": torch.ones(3),
        "w2": codes(3, 192, 96),
        "w2_scales": scales(3, 192, 12),
        "w2_global": torch.ones(3),
        "topk_ids": torch.zeros(2, 4, dtype=torch.int32),
        "topk_weights": torch.ones(2, 4),
        "expert_map": torch.zeros(6, dtype=torch.int32),
        "shared_w13": codes(128, 96),
        "shared_w13_scales": scales(128, 12),
        "shared_w13_global": torch.ones(1),
        "shared_w2": codes(192, 32),
        "shared_w2_scales": scales(192, 4),
        "shared_w2_global": torch.ones(1),
        "shared_multiplier": torch.ones(2, 1, dtype=torch.bfloat16),
        "activation": "silu",
        "limit": float("inf"),
        "alpha": 1.0,
        "beta": 0.0,
        "up_first": False,
        "swizzled": False,
        "router_weight_on_input": False,
        "workspace": torch.zeros(2 * (4 * 192 + 64) * 17 // 8, dtype=torch.uint8),
        "out": torch.zeros(2, 192, dtype=torch.bfloat16),
    }


SHARED = [
    "shared_w13",
    "shared_w13_scales",
    "shared_w13_global",
    "shared_w2",
    "shared_w2_scales",
    "shared_w2_global",
]


def refusal(arguments: Arguments) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.moe_decode(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::moe_decode:" in line)


def test_the_schema_names_what_is_written(good: Arguments) -> None:
    import torch

    schema = torch.ops.gb10.moe_decode.default._schema
    assert [argument.name for argument in schema.arguments] == list(good)
    written = [argument.name for argument in schema.arguments if argument.alias_info is not None]
    assert written == ["workspace", "out"] and not schema.returns


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"expert_map": None},
        {"shared_multiplier": None},
        {**dict.fromkeys(SHARED), "shared_multiplier": None},
        *({"activation": name} for name in ("gelu", "gelu_tanh", "swigluoai", "swiglustep", "situ")),
        {"activation": "swigluoai_uninterleave", "limit": 7.0},
    ],
    ids=str,
)
def test_a_cpu_tensor_is_refused_last(good: Arguments, change: Arguments) -> None:
    assert "x is not on a CUDA device" in refusal({**good, **change})


def test_other_forms_are_taken(good: Arguments) -> None:
    import torch

    without_gate = {
        "w13": good["w13"][:, :192].contiguous(),
        "w13_scales": good["w13_scales"][:, :192].contiguous(),
        "shared_w13": good["shared_w13"][:64],
        "shared_w13_scales": good["shared_w13_scales"][:64],
    }
    for name in ("silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul"):
        assert "x is not on a CUDA device" in refusal({**good, **without_gate, "activation": name})
    wide = {"topk_ids": good["topk_ids"].long(), "w13_global": torch.ones(3, 2)}
    assert "x is not on a CUDA device" in refusal({**good, **wide, "shared_w13_global": torch.ones(2)})
    assert "x is not on a CUDA device" in refusal({**good, "shared_w13_global": torch.tensor(1.0)})


def aside(tensor: Any) -> Any:
    """The same values, two bytes away from a multiple of 16."""
    import torch

    memory = torch.zeros(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = (2 - memory.data_ptr()) % 16
    piece = memory[start : start + tensor.numel() * tensor.element_size()]
    return piece.view(tensor.dtype).view(tensor.shape)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("activation", lambda _: "swish", "activation is 'swish'; it must be one of silu, gelu"),
    ("activation", lambda _: "relu2", "activation is relu2 with a gate, which vLLM names and nobody defines"),
    ("activation", lambda _: "silu_no_mul", "w13 has shape [3, 384, 96]; it must be [3, 192, 96]"),
    ("limit", lambda _: 0.0, "limit is 0.000000; it must be positive"),
    ("limit", lambda _: float("nan"), "limit is nan; it must be positive"),
    ("alpha", lambda _: float("inf"), "alpha or beta is not finite"),
    ("shared_w2", lambda _: None, "of the shared expert's six tensors some are given and some are not"),
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("w13", lambda t: t.int(), "w13 is int32; it must be uint8"),
    ("w2_scales", lambda t: t.float(), "w2_scales is float32; it must be float8_e4m3fn"),
    ("w2_global", lambda t: t.double(), "w2_global is float64; it must be float32"),
    ("topk_ids", lambda t: t.float(), "topk_ids is float32; it must be int32 or int64"),
    ("topk_weights", lambda t: t.bfloat16(), "topk_weights is bfloat16; it must be float32"),
    ("expert_map", lambda t: t.long(), "expert_map is int64; it must be int32"),
    ("shared_multiplier", lambda t: t.half(), "shared_multiplier is float16; it must be float32 or bfloat16"),
    ("out", lambda t: t.half(), "out is float16; it must be bfloat16"),
    ("x", lambda t: t[:0], "x has 0 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.repeat(9, 1), "x has 18 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t[:, :96].contiguous(), "hidden (the columns of x) is 96; it must be a multiple of 64"),
    (
        "w2",
        lambda t: t[:, :, :80].contiguous(),
        "intermediate (twice the last size of w2) is 160; it must be",
    ),
    ("w2", lambda t: t[:0], "w2 holds 0 experts; it must hold 1 to 8192"),
    ("w2", lambda t: t[0], "w2 has shape [192, 96]; it must be [any, any, any]"),
    ("w13", lambda t: t[:2], "w13 has shape [2, 384, 96]; it must be [3, 384, 96]"),
    ("swizzled", lambda _: True, "w2_scales has shape [3, 192, 12]; it must be [3, 256, 12]"),
    ("w13_scales", lambda t: t[:, :, :4].contiguous(), "w13_scales has shape [3, 384, 4]"),
    ("w13_global", lambda t: t[:2], "w13_global has shape [2]; it must be [3] or [3, 2]: gate, up"),
    ("w2_global", lambda t: t[:, None].repeat(1, 2), "w2_global has shape [3, 2]; it must be [3]"),
    ("shared_w2_global", lambda t: t.repeat(2), "shared_w2_global has shape [2]; it must be one number"),
    (
        "shared_w2",
        lambda t: t[:, :24].contiguous(),
        "the shared intermediate (twice the last size of shared_w2)",
    ),
    ("shared_w13", lambda t: t[:64], "shared_w13 has shape [64, 96]; it must be [128, 96]"),
    ("shared_multiplier", lambda t: t[:1], "shared_multiplier has shape [1, 1]; it must be [2, 1]"),
    ("topk_ids", lambda t: t[:, :0], "topk_ids has 0 columns (topk); it must have 1 to 32"),
    ("topk_ids", lambda t: t.repeat(1, 9), "topk_ids has 36 columns (topk); it must have 1 to 32"),
    ("topk_weights", lambda t: t[:, :3].contiguous(), "topk_weights has shape [2, 3]; it must be [2, 4]"),
    ("expert_map", lambda t: t[:0], "expert_map has 0 entries; it must have at least one"),
    ("out", lambda t: t[:1], "out has shape [1, 192]; it must be [2, 192]"),
    ("workspace", lambda t: t[:-1], "workspace has 3535 bytes; it must have at least 3536"),
    ("x", lambda t: t.T.contiguous().T, "x is not contiguous"),
    ("w13", lambda t: t.mT.contiguous().mT, "w13 is not contiguous"),
    ("topk_ids", lambda t: t.T.contiguous().T, "topk_ids is not contiguous"),
    ("out", lambda t: t.T.contiguous().T, "out is not contiguous"),
    ("x", aside, "x does not begin at a multiple of 16 bytes"),
    ("w2", aside, "w2 does not begin at a multiple of 16 bytes"),
    ("w13_scales", aside, "w13_scales does not begin at a multiple of 16 bytes"),
    ("workspace", aside, "workspace does not begin at a multiple of 16 bytes"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: Arguments, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


def test_swigluoai_has_no_order_of_halves(good: Arguments) -> None:
    assert "up_first is true" in refusal({**good, "activation": "swigluoai", "up_first": True})


def test_fake_tensors_pass_and_give_the_shape(good: Arguments) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gb10.kernels.moe_decode import SharedExpert, moe_decode

    routed = list(good)[:9]
    with pytest.raises(RuntimeError, match="not on a CUDA device"):
        moe_decode(*(good[name] for name in routed))
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(good[name]) for name in [*routed, *SHARED]}
        shared = SharedExpert(*(fake[name] for name in SHARED))
        y = moe_decode(*(fake[name] for name in routed), shared=shared)
    assert tuple(y.shape) == (2, 192) and y.dtype == good["x"].dtype


def test_the_activations_are_vllms() -> None:
    """Every name of vLLM's enum is known, and its numbers are vLLM's."""
    from gb10.errors import UserError
    from gb10.kernels.moe_decode import activation_numbers

    assert activation_numbers("silu") == (float("inf"), 1.0, 0.0)
    assert activation_numbers("silu", limit=7.0) == (7.0, 1.0, 0.0)
    assert activation_numbers("swigluoai") == (7.0, 1.702, 1.0)
    assert activation_numbers("swiglustep") == (7.0, 1.0, 0.0)
    for name in ("swigluoai_uninterleave", "situ"):
        with pytest.raises(UserError, match=name):
            activation_numbers(name)
    enum = pytest.importorskip("vllm.model_executor.layers.fused_moe.activation").MoEActivation
    source = (KERNELS / "include" / "gb10" / "op_checks.h").read_text()
    named = set(re.findall(r'\{"(\w+)", moe::Activation::', source))
    assert named == {member.value for member in enum} - {"relu2"}


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """No local memory, copies 16 bytes wide, the first weights before down's wait, matrix instructions."""
    kernels = {name: code for name, code in machine_code.items() if "10moe_decode" in name}
    assert kernels
    for name, code in kernels.items():
        assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)], name
        wide = [i for i, line in enumerate(code) if "LDGSTS.E.BYPASS.LTC128B.128" in line]
        assert len(wide) == 8, name  # four at the start, four in the loop
        if "11gate_up_one" in name:
            assert min(wide) > max(i for i, line in enumerate(code) if "ACQBULK" in line), name
        if "4down" in name:
            # One of the two waits is that of a block without any expert.
            waits = [i for i, line in enumerate(code) if "ACQBULK" in line]
            before = [len([i for i in wide if i < wait]) for wait in waits]
            assert len(waits) == 2 and 4 in before, name
        assert len([line for line in code if "HMMA.16816.F32" in line]) == 16, name


@pytest.mark.parametrize("decodes", [False, True])
def test_the_kernels_on_the_cpu(tmp_path: Path, toolkit: Path, decodes: bool) -> None:
    """Grouping, indices, splits, barriers, copies, without and with the instruction that decodes."""
    printed = on_the_host.run("moe_decode", tmp_path, toolkit, decodes=decodes)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
