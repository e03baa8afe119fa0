"""Which engine and which formats the variables mean, and what is refused."""

import pytest

from gb10.errors import UserError
from gb10.vllm_plugin.cuda.settings import CudaMode, Engine, Format, Part, unfit

UNFIT = "GB10_KERNELS is not set"
ALL = frozenset(Part)
STOCK = CudaMode(Format.KEEP, Format.KEEP, Engine.STOCK, frozenset())


@pytest.mark.parametrize(
    ("environment", "unfit", "mode"),
    [
        ({}, None, CudaMode(Format.FP8, Format.FP8, Engine.GB10, ALL)),
        ({"GB10_ENGINE": "", "GB10_DENSE": ""}, None, CudaMode()),
        ({}, UNFIT, STOCK),
        ({"GB10_ENGINE": "stock"}, None, STOCK),
        ({"GB10_ENGINE": "stock", "GB10_DENSE": "keep"}, None, STOCK),
        ({"GB10_ENGINE": "gb10", "GB10_DENSE": "nvfp4"}, None, CudaMode(dense=Format.NVFP4)),
        ({"GB10_HEAD": "keep"}, None, CudaMode(head=Format.KEEP)),
        (
            {"GB10_ENGINE_PARTS": "experts, head"},
            None,
            CudaMode(dense=Format.KEEP, parts=frozenset({Part.EXPERTS, Part.HEAD})),
        ),
        ({"GB10_ENGINE_PARTS": "none"}, None, CudaMode(Format.KEEP, Format.KEEP, parts=frozenset())),
    ],
)
def test_reads_the_mode(environment: dict[str, str], unfit: str | None, mode: CudaMode) -> None:
    assert CudaMode.from_env(unfit, environment) == mode


@pytest.mark.parametrize(
    ("environment", "unfit", "words"),
    [
        ({"GB10_ENGINE": "ours"}, None, ["GB10_ENGINE='ours'", "gb10, stock"]),
        ({"GB10_DENSE": "int8"}, None, ["GB10_DENSE='int8'", "keep, fp8, nvfp4"]),
        (
            {"GB10_ENGINE_PARTS": "experts,norms"},
            None,
            ["'norms'", "dense, head, linear, experts, router, norm, gdn, attention"],
        ),
        ({"GB10_ENGINE": "gb10"}, UNFIT, ["--engine gb10", UNFIT, "--engine stock"]),
        ({"GB10_DENSE": "fp8"}, UNFIT, ["--dense fp8", UNFIT]),
        ({"GB10_ENGINE": "stock", "GB10_HEAD": "nvfp4"}, None, ["--head nvfp4 needs --engine gb10"]),
    ],
)
def test_refuses(environment: dict[str, str], unfit: str | None, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        CudaMode.from_env(unfit, environment)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("value", "asked"), [("1", True), ("0", False), ("", False)])
def test_results_that_do_not_depend_on_the_batch_are_vllms_own(value: str, asked: bool) -> None:
    """Which of our kernels runs does depend on it."""
    variables = {"VLLM_BATCH_INVARIANT": value}
    why = unfit((9, 0), variables)
    assert why is not None and ("VLLM_BATCH_INVARIANT is set" in why) is asked
    assert CudaMode.from_env(why, variables) == STOCK
    with pytest.raises(UserError, match=r"--engine gb10: .*; mend that, or use --engine stock"):
        CudaMode.from_env(why, variables | {"GB10_ENGINE": "gb10"})


def test_a_part_that_is_off_is_off_in_the_mode() -> None:
    mode = CudaMode.from_env(None, {"GB10_ENGINE_PARTS": "gdn"})
    assert [part for part in Part if mode.has(part)] == [Part.GDN]
    assert not any(map(STOCK.has, Part))
    needed = CudaMode.from_env(None, {"GB10_ENGINE_PARTS": "norm,experts"})
    assert [part for part in Part if needed.has(part)] == [Part.EXPERTS], "norm needs router"
    off = "dense, head, linear, experts, router, norm, attention"
    assert mode.line(None) == f"engine gb10, dense keep, head keep, without {off}"
    assert STOCK.line(UNFIT) == f"engine stock: {UNFIT}"
