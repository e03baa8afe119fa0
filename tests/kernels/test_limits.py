"""The limits in docstrings are the constants of the kernels' headers, by which the operators refuse."""

from __future__ import annotations

import ast
import operator
import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
TYPES, MOE = "include/gb10/types.h", "include/gb10/moe.h"
FRONT = "attention_front/attention_front.h"
OPERATORS = {ast.Mult: operator.mul, ast.LShift: operator.lshift}


def constant(header: str, name: str) -> int:
    """An integer of a header: ``32768``, ``16 * 1024`` or ``1 << 20``."""
    found = re.search(rf"inline constexpr int {name} = ([^;]+);", (KERNELS / header).read_text())
    assert found, f"{header} has no {name}"
    value = ast.parse(found[1], mode="eval").body
    if isinstance(value, ast.BinOp):
        return int(OPERATORS[type(value.op)](ast.literal_eval(value.left), ast.literal_eval(value.right)))
    return int(ast.literal_eval(value))


@pytest.mark.parametrize(
    ("function", "phrase", "header", "name"),
    [
        ("nvfp4_gemv.nvfp4_gemv", "M from 1 to {},", TYPES, "kMaxTokens"),
        ("nvfp4_gemv.nvfp4_gemv", "K a multiple of {}, at most", "nvfp4_gemv/plan.h", "kUnitK"),
        ("nvfp4_gemv.nvfp4_gemv", "K a multiple of 64, at most {}.", "nvfp4_gemv/plan.h", "kMaxK"),
        ("add_norm.add_norm", "H a multiple of {}, at most", "add_norm/add_norm.h", "kColumnUnit"),
        ("add_norm.add_norm", "of 8, at most {};", "add_norm/add_norm.h", "kMaxColumns"),
        ("attention_front.attention_front", "M from 1 to {};", FRONT, "kMaxTokens"),
        ("attention_front.attention_front", "at most {} heads of q, k and v", FRONT, "kMaxHeads"),
        ("attention_front.attention_gate", "D a multiple of 8, at most {};", FRONT, "kMaxHeadSize"),
        ("fp8_gemv.fp8_gemv", "M from 1 to {},", TYPES, "kMaxTokens"),
        ("fp8_gemv.fp8_gemv", "K a multiple of {}, at most", "fp8_gemv/fp8_gemv.h", "kColumnUnit"),
        ("fp8_gemv.fp8_gemv", "K a multiple of 64, at most {}.", "fp8_gemv/fp8_gemv.h", "kMaxColumns"),
        ("gdn_decode.gdn_decode", "with T from 1 to {},", "gdn_decode/gdn_decode.h", "kMaxSteps"),
        ("gdn_decode.gdn_decode", "N at most {}.", "gdn_decode/gdn_decode.h", "kMaxSequences"),
        ("gdn_decode.gdn_decode", "at most {} rows together", "gdn_decode/gdn_decode.h", "kMaxGroup"),
        ("moe_decode.moe_decode", "M from 1 to {}.", TYPES, "kMaxTokens"),
        ("moe_decode.moe_decode", "topk from 1 to {};", MOE, "kMaxTopk"),
        ("moe_decode.moe_decode", "multiples of 64, at most {};", "moe_decode/moe_decode.h", "kMaxWidth"),
        ("moe_decode.moe_decode", "E is at most {}.", "moe_decode/moe_decode.h", "kMaxExperts"),
        ("moe_router.route_experts", "M from 1 to {},", TYPES, "kMaxTokens"),
        ("moe_router.route_experts", "H a multiple of {}, at most", "moe_router/moe_router.h", "kColumnUnit"),
        ("moe_router.route_experts", "256, at most {}.", "moe_router/moe_router.h", "kMaxColumns"),
        ("moe_router.route_experts", "E at most {},", "moe_router/moe_router.h", "kMaxExperts"),
        ("moe_router.route_experts", "topk from 1 to {} and", MOE, "kMaxTopk"),
        ("sparse24.sparse24_gemv", "M from 1 to {},", TYPES, "kMaxTokens"),
        ("sparse24.sparse24_gemv", "K a multiple of 16, at most {}.", "sparse24/sparse24.h", "kMaxColumns"),
        ("sparse24.sparse24_moe", "topk from 1 to {};", MOE, "kMaxTopk"),
        ("sparse24.sparse24_moe", "multiples of 16, at most {};", "sparse24/moe.h", "kMaxWidth"),
        ("sparse24.sparse24_moe", "E is at most {}.", "sparse24/moe.h", "kMaxExperts"),
    ],
)
def test_the_docstring_names_the_constant(function: str, phrase: str, header: str, name: str) -> None:
    pytest.importorskip("torch")
    import importlib

    module, _, attribute = function.partition(".")
    documented = getattr(importlib.import_module(f"gb10.kernels.{module}"), attribute).__doc__
    assert phrase.format(constant(header, name)) in " ".join(documented.split())
