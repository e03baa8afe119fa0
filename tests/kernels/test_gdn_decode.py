"""gb10::gdn_decode without a GPU: schema, refusals, fake tensors, machine code, the kernel on the CPU."""

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
    """Arguments that only their device speaks against: 3 sequences of 2 tokens, 2 key and 4 value heads."""
    import torch

    keys, values = 2 * 64, 4 * 64
    channels, columns = 2 * keys + values, 2 * keys + 2 * values + 8
    return {
        "mixed": torch.zeros(6, columns, dtype=torch.bfloat16),
        "conv_state": torch.zeros(5, 4, channels, dtype=torch.bfloat16).transpose(1, 2),
        "conv_weight": torch.zeros(channels, 4, dtype=torch.bfloat16),
        "conv_bias": torch.zeros(channels, dtype=torch.bfloat16),
        "A_log": torch.zeros(4),
        "dt_bias": torch.zeros(4, dtype=torch.bfloat16),
        "state": torch.zeros(5, 4, 64, 64),
        "norm_weight": torch.zeros(64),
        "epsilon": 1e-6,
        "slots": torch.zeros(3, 2, dtype=torch.int32),
        "key_heads": 2,
        "value_heads": 4,
        "interleaved": True,
        "out": torch.zeros(6, values, dtype=torch.bfloat16),
        "accepted": torch.ones(3, dtype=torch.int32),
        "starts": None,
    }


def refusal(arguments: Arguments) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.gdn_decode(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::gdn_decode:" in line)


def test_the_schema_names_what_is_written(good: Arguments) -> None:
    import torch

    schema = torch.ops.gb10.gdn_decode.default._schema
    assert [argument.name for argument in schema.arguments] == list(good)
    written = [argument.name for argument in schema.arguments if argument.alias_info is not None]
    assert written == ["conv_state", "state", "out"] and not schema.returns


def spread(tensor: Any, size: int) -> Any:
    """The same values, the entries of the first dimension ``size`` numbers apart."""
    import torch

    memory = torch.zeros(tensor.shape[0] * size, dtype=tensor.dtype)
    return torch.as_strided(memory, tensor.shape, (size, *tensor.stride()[1:]))


def starts(*rows: int) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.int32)


CHANGES: list[Callable[[Arguments], Arguments]] = [
    lambda _: {},
    lambda _: {"conv_bias": None, "accepted": None, "interleaved": False},
    lambda good: {"dt_bias": good["dt_bias"].float(), "norm_weight": good["norm_weight"].bfloat16()},
    lambda good: {"state": spread(good["state"].bfloat16(), 4 * 64 * 64 + 8)},
    lambda good: {"mixed": spread(good["mixed"], 2000), "conv_state": good["conv_state"].contiguous()},
    lambda good: {"slots": good["slots"].repeat(1, 2)[:, ::2]},
    lambda good: {"starts": starts(0, 2, 3, 3)},
    lambda good: {"starts": starts(0, 1, 1, 2), "mixed": good["mixed"][:3], "out": good["out"][:3]},
    lambda good: {
        "slots": good["slots"].flatten(),
        "accepted": None,
        "conv_state": good["conv_state"][:, :, :3],
    },
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_cpu_tensor_is_refused_last(good: Arguments, change: Callable[[Arguments], Arguments]) -> None:
    assert "mixed is not on a CUDA device" in refusal({**good, **change(good)})


def aside(tensor: Any) -> Any:
    """The same values, two bytes away from a multiple of 16."""
    import torch

    memory = torch.zeros(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = (2 - memory.data_ptr()) % 16
    if tensor.element_size() == 4:
        start += 2  # a view of 4-byte numbers must begin at a multiple of 4
    piece = memory[start : start + tensor.numel() * tensor.element_size()]
    return piece.view(tensor.dtype).view(tensor.shape)


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("mixed", lambda t: t.float(), "mixed is float32; it must be bfloat16 or float16"),
    ("conv_state", lambda t: t.half(), "conv_state is float16; it must be bfloat16"),
    ("conv_weight", lambda t: t.float(), "conv_weight is float32; it must be bfloat16"),
    ("conv_bias", lambda t: t.float(), "conv_bias is float32; it must be bfloat16"),
    ("A_log", lambda t: t.bfloat16(), "A_log is bfloat16; it must be float32"),
    ("dt_bias", lambda t: t.half(), "dt_bias is float16; it must be bfloat16 or float32"),
    ("state", lambda t: t.half(), "state is float16; it must be bfloat16 or float32"),
    ("norm_weight", lambda t: t.double(), "norm_weight is float64; it must be bfloat16 or float32"),
    ("slots", lambda t: t.long(), "slots is int64; it must be int32"),
    ("accepted", lambda t: t.long(), "accepted is int64; it must be int32"),
    ("starts", lambda _: starts(0, 2, 4, 6).long(), "starts is int64; it must be int32"),
    ("starts", lambda _: starts(0, 2, 4), "starts has shape [3]; it must be [4]"),
    ("starts", lambda _: starts(0, 0, 2, 2, 4, 4, 6, 6)[::2], "starts is not contiguous"),
    ("out", lambda t: t.float(), "out is float32; it must be bfloat16"),
    ("state", lambda t: t[..., :32], "its last two sizes (a value head, a key head) must be 64 or 128"),
    ("state", lambda t: t[:, :3], "state has shape [5, 3, 64, 64]; it must be [any, 4, any, any]"),
    ("state", lambda t: t[:0], "state has 0 slots; it must have 1 to"),
    ("state", lambda t: t[:4], "conv_state has shape [5, 512, 4]; it must be [4, 512, any]"),
    ("value_heads", lambda _: 0, "state has shape [5, 4, 64, 64]; it must be [any, 0, any, any]"),
    ("key_heads", lambda _: 0, "key_heads is 0; it must divide value_heads, which is 4"),
    ("key_heads", lambda _: 3, "key_heads is 3; it must divide value_heads, which is 4"),
    ("slots", lambda t: t[:0], "slots has 0 rows (sequences); it must have 1 to 65535"),
    ("slots", lambda t: t[:, :0], "slots has 0 columns (tokens of a sequence); it must have 1 to 8"),
    ("slots", lambda t: t.repeat(1, 5), "slots has 10 columns (tokens of a sequence); it must have 1 to 8"),
    ("slots", lambda t: t[None], "slots has shape [1, 3, 2]; it must be [any] or [any, any]"),
    ("slots", lambda t: t[:2], "accepted has shape [3]; it must be [2]"),
    ("slots", lambda t: t.repeat(1, 2), "mixed has shape [6, 776]; it must be [12, any]"),
    ("mixed", lambda t: t[:, 1:], "mixed has 775 columns; q, k, v, z, b and a take 776"),
    ("conv_weight", lambda t: t[:, :3], "conv_weight has shape [512, 3]; it must be [512, 4]"),
    ("conv_bias", lambda t: t[1:], "conv_bias has shape [511]; it must be [512]"),
    ("conv_state", lambda t: t[..., :3], "for 2 tokens of a sequence its last size must be at least 4"),
    ("conv_state", lambda t: t[:, 2:], "conv_state has shape [5, 510, 4]; it must be [5, 512, any]"),
    ("A_log", lambda t: t[:2], "A_log has shape [2]; it must be [4]"),
    ("dt_bias", lambda t: t[:2], "dt_bias has shape [2]; it must be [4]"),
    ("norm_weight", lambda t: t[:32], "norm_weight has shape [32]; it must be [64]"),
    ("out", lambda t: t[:4], "out has shape [4, 256]; it must be [6, 256]"),
    ("epsilon", lambda _: float("nan"), "epsilon is nan; it must be 0 or more"),
    ("mixed", lambda t: t.T.contiguous().T, "mixed has strides 1 and 6; its columns must be next to"),
    ("mixed", lambda t: spread(t, 2001), "mixed has strides 2001 and 1"),
    ("state", lambda t: t.mT.contiguous().mT, "state is not dense within a slot"),
    ("state", lambda t: spread(t, 4 * 64 * 64 + 2), "state has slots 16386 numbers apart"),
    ("mixed", aside, "mixed does not begin at a multiple of 4 bytes"),
    ("state", aside, "state does not begin at a multiple of 16 bytes"),
    ("conv_weight", aside, "conv_weight does not begin at a multiple of 16 bytes"),
    ("A_log", lambda t: t.repeat(2)[::2], "A_log is not contiguous"),
    ("out", lambda t: t.T.contiguous().T, "out is not contiguous"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: Arguments, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


def test_a_key_head_has_no_more_value_heads_than_a_cluster_takes(good: Arguments) -> None:
    import torch

    state = torch.zeros(5, 16, 64, 64)
    said = refusal({**good, "state": state, "key_heads": 1, "value_heads": 16})
    assert "the value heads of a key head have 1024 rows of state together; it must be at most 512" in said


def test_there_must_be_a_token(good: Arguments) -> None:
    said = refusal({**good, "starts": starts(0, 0, 0, 0), "mixed": good["mixed"][:0]})
    assert "mixed has 0 rows (tokens); it must have 1 to 524280" in said


def test_strides_have_32_bits(good: Arguments) -> None:
    import torch

    one = {
        "mixed": good["mixed"][:2],
        "out": good["out"][:2],
        "accepted": good["accepted"][:1],
        "slots": torch.as_strided(good["slots"], (1, 2), (1 << 30, 1)),
    }
    said = refusal({**good, **one})
    assert "a stride of mixed, conv_state, state or slots is too large; copy the tensor first" in said


def test_fake_tensors_pass_and_give_the_shape(good: Arguments) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gb10.kernels.gdn_decode import gdn_decode

    def call(arguments: Arguments) -> Any:
        given = dict(arguments)
        given.pop("out")
        return gdn_decode(**given)

    with pytest.raises(RuntimeError, match="not on a CUDA device"):
        call(good)
    with FakeTensorMode() as mode:
        y = call({name: mode.from_tensor(v) if hasattr(v, "dtype") else v for name, v in good.items()})
    assert tuple(y.shape) == (6, 256) and y.dtype == good["mixed"].dtype


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """The state is asked for before the wait and read after it, past L1, 16 bytes wide; next to no stack."""
    kernels = {name: code for name, code in machine_code.items() if "10gdn_decode" in name}
    assert len(kernels) in (32, 64)  # a route's targets
    for name, code in kernels.items():
        wait = next(i for i, line in enumerate(code) if "ACQBULK" in line)
        hints = [i for i, line in enumerate(code) if "CCTL" in line and "PF2" in line]
        assert hints and max(hints) < wait, name
        wide = [i for i, line in enumerate(code) if re.search(r"LDG\.E\.128\.STRONG\.GPU", line)]
        assert wide and min(wide) > wait, name
        stack = [line for line in code if re.search(r"\b(LDL|STL)\b", line)]
        assert len(stack) <= 8, name


def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """Layouts, slots, clusters, several tokens, and that neither splits nor tokens of a call change bits."""
    printed = on_the_host.run("gdn_decode", tmp_path, toolkit)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
