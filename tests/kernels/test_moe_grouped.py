"""gb10::moe_grouped without a GPU: schema, refusals, workspace, machine code, the kernels on the CPU.

What it checks of its arguments is what moe_decode does, by the same code: test_moe_decode.py has it.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import on_the_host
import pytest


def arguments(sizes: tuple[int, ...], workspace: int = 0) -> list[Any]:
    """Arguments that only their device speaks against, and the workspace.

    `sizes`: tokens, topk, experts, hidden, intermediate, and the shared expert's.
    """
    import torch

    tokens, topk, experts, hidden, inner, shared = sizes

    def weights(*shape: int) -> tuple[Any, Any, Any]:
        *rows, k = shape
        codes = torch.zeros(*rows, k // 2, dtype=torch.uint8)
        return codes, torch.zeros(*rows, k // 16, dtype=torch.float8_e4m3fn), torch.ones(*rows[:-1] or (1,))

    x = torch.zeros(tokens, hidden, dtype=torch.bfloat16)
    routed = (*weights(experts, 2 * inner, hidden), *weights(experts, hidden, inner))
    ids, factors = torch.zeros(tokens, topk, dtype=torch.int32), torch.ones(tokens, topk)
    own: tuple[Any, ...] = (None,) * 7
    if shared:
        own = (*weights(2 * shared, hidden), *weights(hidden, shared), None)
    numbers = ("silu", float("inf"), 1.0, 0.0, False, False, False)
    memory = torch.zeros(workspace, dtype=torch.uint8)
    return [x, *routed, ids, factors, None, *own, *numbers, memory, torch.zeros_like(x)]


def refusal(given: list[Any]) -> str:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.moe_grouped(*given)
    lines: list[str] = str(caught.value).splitlines()
    return next(line for line in lines if "gb10::moe_grouped:" in line)


def test_the_schema_is_that_of_moe_decode(operators: None) -> None:
    import torch

    ours, decode = (getattr(torch.ops.gb10, name).default._schema for name in ("moe_grouped", "moe_decode"))
    assert str(ours) == str(decode).replace("moe_decode", "moe_grouped")


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 64, 64, 0), (17, 4, 16, 256, 64, 128), (100, 10, 512, 64, 64, 64), (65, 2, 1, 128, 192, 64)],
    ids=str,
)
def test_the_workspace_is_what_the_wrapper_says(operators: None, sizes: tuple[int, ...]) -> None:
    from gb10.kernels.moe_grouped import workspace_bytes

    needed = workspace_bytes(*sizes)
    short = arguments(sizes, workspace=needed - 1)
    said = f"workspace has {needed - 1} bytes; it must have at least {needed}"
    assert said in refusal(short)
    assert "x is not on a CUDA device" in refusal(arguments(sizes, workspace=needed))


def test_tokens(operators: None) -> None:
    assert "x has 0 rows (tokens); it must have 1 to 32768" in refusal(arguments((0, 1, 1, 64, 64, 0)))
    assert "x has 32769 rows (tokens)" in refusal(arguments((32769, 1, 1, 64, 64, 0)))


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """Matrix instructions for tiles of every size, wide asynchronous copies, next to no local memory."""
    kernels = {name: code for name, code in machine_code.items() if "moe_grouped8multiply" in name}
    assert len(kernels) % 16 == 0 and kernels
    for name, code in kernels.items():
        groups = 1 + 2 + (4 + 6 + 8 if "Li64E" in name else 0)
        products = [line for line in code if re.search(r"\bHMMA\.16816\.F32", line)]
        assert len(products) == groups * 4 * 8, name  # operands x k16 of a step
        assert [line for line in code if "LDGSTS.E" in line and ".128" in line], name
        local = [line for line in code if re.search(r"\b(LDL|STL)\b", line)]
        assert len(local) <= 160, name  # of tens of thousands


def test_machine_code_of_warpgroups(machine_code: dict[str, list[str]]) -> None:
    """On 9.0 each width has its products, two groups of them under way; nothing for other targets.

    Where it lacks registers ptxas lets products wait for each other: then no wait leaves a group under way.
    """
    kernels = {name: code for name, code in machine_code.items() if "multiply_by_warpgroups" in name}
    assert kernels
    for name, code in kernels.items():
        products = [line for line in code if "HGMMA.64x" in line]
        if not name.startswith("sm_90"):
            assert not products, name
            continue
        widths = [width for line in products for width in re.findall(r"HGMMA\.64x(\d+)x16\.F32\.BF16", line)]
        assert Counter(map(int, widths)) == dict.fromkeys(range(16, 177, 16), 2 * 2 * 2), name
        waits = [line for line in code if re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1\b", line)]
        assert len(waits) == 2 * 2 * len(set(widths)), name
        local = [line for line in code if re.search(r"\b(LDL|STL)\b", line)]
        assert len(local) <= 80, name  # of the warpgroup that copies


@pytest.mark.parametrize("decodes", [False, True])
def test_the_kernels_on_the_cpu(tmp_path: Path, toolkit: Path, decodes: bool) -> None:
    """All indices, groupings, tiles and tails, for targets without and with the instruction that decodes."""
    printed = on_the_host.run("moe_grouped", tmp_path, toolkit, decodes=decodes)
    assert re.search(r"[1-9]\d* runs, 0 wrong", printed)
