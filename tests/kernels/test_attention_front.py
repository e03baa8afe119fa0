"""gb10::attention_front and attention_gate without a GPU: schema, refusals, machine code, on the CPU."""

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
    """Arguments that only their device speaks against: 3 tokens, 4 heads with gates, 2 of k and v, of 128."""
    import torch

    def zeros(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.bfloat16)

    eight = torch.float8_e4m3fn
    keys, values = zeros(5, 2, 16, 256).to(eight).transpose(1, 2).split(128, dim=-1)
    return {
        "qkv": zeros(3, 12 * 128),
        "q_weight": zeros(128),
        "k_weight": zeros(128),
        "epsilon": 1e-6,
        "norm_plus_one": True,
        "cos_sin": zeros(40, 64),
        "positions": torch.zeros(3, 3, dtype=torch.int64),
        "height_section": 11,
        "width_section": 10,
        "heads": 4,
        "kv_heads": 2,
        "gated": True,
        "query": zeros(3, 4 * 128).to(eight),
        "key_out": zeros(3, 2 * 128),
        "key_cache": keys,
        "value_cache": values,
        "slots": torch.zeros(2, dtype=torch.int64),
        "q_scale": torch.ones(1),
        "k_scale": torch.ones(()),
        "v_scale": torch.ones(()),
    }


def refusal(arguments: Arguments, name: str = "attention_front") -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        getattr(torch.ops.gb10, name)(*arguments.values())
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if f"gb10::{name}:" in line)


def test_the_schemas_name_what_is_written(good: Arguments) -> None:
    import torch

    schema = torch.ops.gb10.attention_front.default._schema
    assert [argument.name for argument in schema.arguments] == list(good)
    written = [argument.name for argument in schema.arguments if argument.alias_info is not None]
    assert written == ["query", "key_out", "key_cache", "value_cache"] and not schema.returns
    gate = torch.ops.gb10.attention_gate.default._schema
    assert [argument.alias_info is not None for argument in gate.arguments] == [True, False]


def without_cache(good: Arguments) -> Arguments:
    return dict.fromkeys(("key_cache", "value_cache", "slots", "k_scale", "v_scale"))


CHANGES: list[Callable[[Arguments], Arguments]] = [
    lambda _: {},
    without_cache,
    lambda good: {"query": good["query"].bfloat16(), "q_scale": None, "key_out": None},
    lambda good: {
        "key_cache": good["key_cache"].bfloat16(),
        "value_cache": good["value_cache"].bfloat16(),
        "k_scale": None,
        "v_scale": None,
    },
    lambda good: {"positions": good["positions"][0], "height_section": 0, "width_section": 0},
    lambda good: {"positions": good["positions"].int()},
    lambda good: {"gated": False, "heads": 8, "query": good["query"].repeat(1, 2)},
    lambda good: {"qkv": good["qkv"].repeat(1, 2)[:, : 12 * 128]},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_cpu_tensor_is_refused_last(good: Arguments, change: Callable[[Arguments], Arguments]) -> None:
    assert "qkv is not on a CUDA device" in refusal({**good, **change(good)})


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("qkv", lambda t: t.float(), "qkv is float32; it must be bfloat16 or float16"),
    ("q_weight", lambda t: t.half(), "q_weight is float16; it must be bfloat16"),
    ("cos_sin", lambda t: t.float(), "cos_sin is float32; it must be bfloat16"),
    ("positions", lambda t: t.float(), "positions is float32; it must be int64 or int32"),
    ("slots", lambda t: t.int(), "slots is int32; it must be int64"),
    ("query", lambda t: t.float(), "query is float32; it must be bfloat16 or float8_e4m3fn"),
    ("query", lambda t: t.bfloat16(), "q_scale is given with a query of bfloat16"),
    ("q_scale", lambda _: None, "q_scale is not given with a query of float8_e4m3fn"),
    ("key_cache", lambda t: t.half(), "key_cache is float16; it must be bfloat16 or uint8 or float8_e4m3fn"),
    ("value_cache", lambda t: t.bfloat16(), "key_cache and value_cache have different dtypes"),
    ("value_cache", lambda _: None, "of key_cache and value_cache one is given and one is not"),
    ("slots", lambda _: None, "of key_cache and slots one is given and one is not"),
    ("v_scale", lambda _: None, "of k_scale and v_scale one is given and one is not"),
    ("qkv", lambda t: t[:0], "qkv has 0 rows (tokens); it must have 1 to 1048576"),
    ("qkv", lambda t: t[:, 8:], "qkv has shape [3, 1528]; it must be [3, 1536]"),
    ("heads", lambda _: 0, "heads is 0 and kv_heads is 2; each must be at least 1"),
    ("kv_heads", lambda _: 512, "those of q, k and v together at most 1024"),
    ("gated", lambda _: False, "qkv has shape [3, 1536]; it must be [3, 1024]"),
    ("q_weight", lambda t: t[:96], "q_weight has 96 numbers (the size of a head); it must have 64, 128 or"),
    ("k_weight", lambda t: t[:64], "k_weight has shape [64]; it must be [128]"),
    ("query", lambda t: t[:2], "query has shape [2, 512]; it must be [3, 512]"),
    ("key_out", lambda t: t[:2], "key_out has shape [2, 256]; it must be [3, 256]"),
    ("cos_sin", lambda t: t[:0], "cos_sin has 0 rows (positions); it must have at least one"),
    (
        "cos_sin",
        lambda t: t[:, :60],
        "cos_sin has 60 columns (numbers that rotate); it must be a multiple of 8",
    ),
    ("cos_sin", lambda t: t.repeat(1, 3), "cos_sin has 192 columns (numbers that rotate)"),
    ("positions", lambda t: t[:2], "positions has shape [2, 3]; it must be [3, 3]"),
    ("positions", lambda t: t[0, :2], "positions has shape [2]; it must be [3]"),
    ("positions", lambda t: t[0], "height_section is 11 and width_section is 10; with three rows"),
    ("width_section", lambda _: 22, "with three rows of positions they are parts of 32, else 0"),
    ("key_cache", lambda t: t[:4], "value_cache has shape [5, 16, 2, 128]; it must be [4, 16, 2, 128]"),
    ("key_cache", lambda t: t[..., :64], "key_cache has shape [5, 16, 2, 64]; it must be [any, any, 2, 128]"),
    ("q_scale", lambda t: t.repeat(2), "q_scale has shape [2]; it must have one element"),
    ("epsilon", lambda _: -1.0, "epsilon is -1.000000; it must be 0 or more"),
    ("qkv", lambda t: t.T.contiguous().T, "qkv has a last stride of 3; it must be 1"),
    ("qkv", lambda t: t.repeat(1, 2)[:, :1540].clone()[:, :1536], "qkv has a stride of 1540"),
    ("q_weight", lambda t: t.repeat(2)[::2], "q_weight is not contiguous"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), BAD, ids=[said for _, _, said in BAD])
def test_refuses_by_name(good: Arguments, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    assert said in refusal({**good, name: spoil(good[name])})


GATE_BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("out", lambda t: t, "out is not on a CUDA device"),
    ("out", lambda t: t.float(), "out is float32; it must be bfloat16 or float16"),
    ("gates", lambda t: t.half(), "gates is float16; it must be bfloat16"),
    ("gates", lambda t: t[:2], "gates has shape [2, 4, 128]; it must be [3, 4, 128]"),
    ("out", lambda t: t[..., :4], "it must have 1 to 1024 heads of a multiple of 8 numbers, at most 1024"),
    ("gates", lambda t: t[..., 1:], "gates has shape [3, 4, 127]"),
    ("out", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "out is not contiguous"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), GATE_BAD, ids=[said for _, _, said in GATE_BAD])
def test_the_gate_refuses_by_name(operators: None, name: str, spoil: Callable[[Any], Any], said: str) -> None:
    import torch

    both = torch.zeros(3, 4, 2, 128, dtype=torch.bfloat16)
    good = {"out": both[:, :, 0].contiguous(), "gates": both[:, :, 1]}
    assert said in refusal({**good, name: spoil(good[name])}, "attention_gate")


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """Cosines are read before the wait; the front lets nothing begin before its end, the gate does."""
    kernels = {name: code for name, code in machine_code.items() if "15attention_front" in name}
    assert len(kernels) in (8, 16)  # a route's targets
    for name, code in kernels.items():
        wait = next(i for i, line in enumerate(code) if "ACQBULK" in line)
        loads = [i for i, line in enumerate(code) if re.search(r"\bLDG\.E", line)]
        gate = "4gate" in name
        assert (min(loads) > wait) is gate, name
        assert any("PREEXIT" in line for line in code) is gate, name
        assert gate or any("F2FP.SATFINITE.E4M3" in line for line in code), name
        assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line)], name


def test_the_kernels_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """Against float64: shapes, rows of positions, paged caches in 16 and 8 bits, what nobody may touch."""
    printed = on_the_host.run("attention_front", tmp_path, toolkit)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
