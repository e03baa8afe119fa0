"""2 of 4 without a GPU: packing, layout, report; the kernels on the CPU; schemas, refusals, machine code."""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_the_host
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import ROUTES, built, instructions, load_without_gpu

torch = pytest.importorskip("torch")

from gb10.cli import main  # noqa: E402
from gb10.nvfp4 import NvFp4Tensor, dequantize, quantize  # noqa: E402
from gb10.nvfp4 import pack as pack_codes  # noqa: E402
from gb10.nvfp4 import unpack as unpack_codes  # noqa: E402
from gb10.sparse24 import (  # noqa: E402
    Loss,
    TooLossyError,
    kept_positions,
    measure,
    pack,
    table,
    total,
    unpack,
)

PAIRS = list(itertools.combinations(range(4), 2))


def random_weight(rows: int, columns: int, seed: int, zeros: float = 0.0) -> NvFp4Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=generator)
    codes[torch.rand(codes.shape, generator=generator) < zeros] = 0
    scales = torch.randint(0, 0x7F, (rows, columns // 16), dtype=torch.uint8, generator=generator)
    return NvFp4Tensor(pack_codes(codes), scales.view(torch.float8_e4m3fn), torch.tensor(0.037))


def keep_by_hand(codes: list[int]) -> list[int]:
    """One group, by the rule's words: the two largest magnitudes, the first of equal ones."""
    best = sorted(range(4), key=lambda i: (-(codes[i] & 7), i))[:2]
    return [code if i in best else 0 for i, code in enumerate(codes)]


@given(st.lists(st.integers(0, 15), min_size=4, max_size=4))
def test_what_is_kept_of_a_group(codes: list[int]) -> None:
    first, second = kept_positions(torch.tensor(codes, dtype=torch.uint8))[0].tolist()
    assert first < second
    kept = [code if i in (first, second) else 0 for i, code in enumerate(codes)]
    assert kept == keep_by_hand(codes)
    if sum(code & 7 != 0 for code in codes) <= 2:
        assert [code & 7 for code in kept] == [code & 7 for code in codes]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    zeros=st.sampled_from([0, 0.5, 0.9]),
)
def test_unpacking_gives_what_was_kept(rows: int, blocks: int, seed: int, zeros: float) -> None:
    weight = random_weight(rows, 16 * blocks, seed, zeros)
    packed, loss = pack(weight, allow_loss=True)
    back = unpack(packed)
    groups = unpack_codes(weight.packed).reshape(-1, 4).tolist()
    assert unpack_codes(back.packed).reshape(-1, 4).tolist() == [keep_by_hand(group) for group in groups]
    assert torch.equal(back.block_scales.view(torch.uint8), weight.block_scales.view(torch.uint8))
    assert torch.equal(back.global_scale, weight.global_scale)
    # What fits already loses nothing, and packs to the same bytes.
    again, nothing = pack(back, energy_limit=0.0)
    assert nothing.dropped == 0 and nothing.energy_dropped == 0
    assert nothing.energy == pytest.approx(loss.energy - loss.energy_dropped, rel=1e-9)
    kept = unpack(again)
    assert torch.equal(kept.packed, back.packed)


def test_the_layout_is_the_one_the_kernel_documents() -> None:
    """Every lane of every tile, by the words at the top of sparse24.cuh, one number at a time."""
    weight = random_weight(32, 512, 11)
    packed, _ = pack(weight, allow_loss=True)
    codes = unpack_codes(weight.packed).tolist()
    places = kept_positions(unpack_codes(weight.packed)).tolist()
    scales = weight.block_scales.view(torch.uint8).tolist()
    for row_tile, column_tile in itertools.product(range(2), range(2)):
        values = packed.values[row_tile, column_tile].tolist()
        positions = packed.positions[row_tile, column_tile].tolist()
        tile_scales = packed.scales[row_tile, column_tile].view(torch.uint8).tolist()
        for g, t in itertools.product(range(8), range(4)):
            lane = 4 * g + t
            rows = (16 * row_tile + g, 16 * row_tile + g + 8)
            for j in range(8):
                at = 512 * (j // 4) + 16 * lane + 4 * (j % 4)
                word = int.from_bytes(bytes(values[at : at + 4]), "little")
                for group, half in itertools.product(range(2), range(2)):
                    index = 64 * column_tile + 16 * t + 2 * j + group
                    kept = [codes[rows[half]][4 * index + p] for p in places[rows[half]][index]]
                    stored = [word >> 8 * (2 * place + group) & 0xFF for place in range(2)]
                    if half == 0:
                        assert kept == [byte >> 7 << 3 | byte >> 1 & 7 for byte in stored]
                    else:
                        assert kept == [(byte & 1) << 3 | byte >> 4 & 7 for byte in stored]
            words = [
                int.from_bytes(bytes(positions[start : start + 4]), "little")
                for start in (8 * lane, 8 * lane + 4, 256 + 4 * lane)
            ]
            for i in range(4):
                for place, slot in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    if i < 3:
                        code = words[i] >> 4 * place & 7
                    else:
                        code = sum((words[b] >> 4 * place + 3 & 1) << b for b in range(3))
                    index = 64 * column_tile + 16 * (slot % 4) + 2 * (2 * i + t // 2) + t % 2
                    assert list(PAIRS[code]) == places[rows[slot // 4]][index]
            for half in range(2):
                begin = 16 * column_tile + 4 * t
                assert tile_scales[8 * lane + 4 * half :][:4] == scales[rows[half]][begin : begin + 4]


def test_thirteen_bytes_for_thirty_two_values() -> None:
    packed, _ = pack(random_weight(64, 1024, 3), allow_loss=True)
    assert packed.bytes * 32 == 64 * 1024 * 13
    assert packed.bytes / (64 * 1024 * 9 / 16) == pytest.approx(52 / 72)


def test_experts_are_packed_one_by_one() -> None:
    parts = [random_weight(20, 304, seed) for seed in range(3)]
    stack = NvFp4Tensor(
        torch.stack([part.packed for part in parts]),
        torch.stack([part.block_scales.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn),
        torch.tensor([0.1, 1.0, 10.0]),
    )
    packed, loss = pack(stack, allow_loss=True)
    for i, part in enumerate(parts):
        one, _ = pack(part, allow_loss=True)
        assert torch.equal(packed.values[i], one.values)
        assert torch.equal(packed.positions[i], one.positions)
        assert torch.equal(packed.scales[i].view(torch.uint8), one.scales.view(torch.uint8))
    assert torch.equal(unpack(packed).packed[1], unpack(pack(parts[1], allow_loss=True)[0]).packed)
    alone = [
        measure(NvFp4Tensor(p.packed, p.block_scales, s))
        for p, s in zip(parts, stack.global_scale, strict=True)
    ]
    assert loss.energy == pytest.approx(total(alone).energy, rel=1e-9)
    assert loss.groups_by_nonzeros == total(alone).groups_by_nonzeros


def test_the_loss_is_what_dequantised_values_lose() -> None:
    weight = quantize(torch.randn(96, 320, generator=torch.Generator().manual_seed(5)))
    packed, loss = pack(weight, allow_loss=True)
    dense, kept = dequantize(*weight).double(), dequantize(*unpack(packed)).double()
    assert loss.energy == pytest.approx(float(dense.square().sum()), rel=1e-6)
    assert loss.energy_dropped == pytest.approx(float((dense - kept).square().sum()), rel=1e-6)
    assert loss.nonzeros == int((dense != 0).sum())
    assert loss.dropped == int(((dense != 0) & (kept == 0)).sum())
    counts = (dense.reshape(-1, 4) != 0).sum(-1)
    assert loss.groups_by_nonzeros == tuple(int((counts == n).sum()) for n in range(5))
    assert loss.share_of_fitting_groups == pytest.approx(float((counts <= 2).double().mean()))


def test_trained_like_weights_are_refused_unless_told() -> None:
    weight = quantize(torch.randn(32, 256, generator=torch.Generator().manual_seed(7)))
    with pytest.raises(
        TooLossyError, match=r"blk\.0: keeping 2 of 4 drops 1\d\.\d\d% of the energy.*1\.00%"
    ) as caught:
        pack(weight, name="blk.0")
    share = caught.value.loss.share_of_energy_dropped
    with pytest.raises(TooLossyError):
        pack(weight, energy_limit=share * 0.999)
    _, allowed = pack(weight, energy_limit=share * 1.001)
    assert allowed.share_of_energy_dropped == share


@pytest.mark.parametrize("shape", [(8,), (2, 2, 2, 8), (4, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    scales = torch.zeros(*shape[:-1], shape[-1] // 8, dtype=torch.uint8).view(torch.float8_e4m3fn)
    weight = NvFp4Tensor(torch.zeros(shape, dtype=torch.uint8), scales, torch.tensor(1.0))
    with pytest.raises(ValueError, match="packs"):
        pack(weight)


def test_scales_of_another_shape_are_refused() -> None:
    weight = random_weight(16, 64, 0)
    with pytest.raises(ValueError, match="does not fit"):
        measure(weight._replace(block_scales=weight.block_scales[:, :3]))
    with pytest.raises(ValueError, match="global scale of shape"):
        measure(weight._replace(global_scale=torch.ones(5)))


def test_an_all_zero_weight_loses_nothing() -> None:
    loss = pack(random_weight(5, 32, 0, zeros=1.1))[1]
    assert loss.share_of_energy_dropped == loss.share_of_nonzeros_dropped == 0
    assert loss.share_of_fitting_groups == 1


def test_counts_add_up() -> None:
    a = Loss("a", (1, 2, 3, 4, 5), 10.0, 1.0)
    b = Loss("b", (10, 0, 0, 0, 1), 30.0, 3.0)
    both = total([a, b])
    assert both.groups_by_nonzeros == (11, 2, 3, 4, 6)
    assert (a.groups, a.nonzeros, a.dropped) == (15, 2 + 6 + 12 + 20, 4 + 10)
    assert both.share_of_energy_dropped == pytest.approx(0.1)
    assert both.dropped == a.dropped + b.dropped


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    losses = [
        Loss("model.layers.47.mlp.experts.511.gate_up_proj.weight", (1, 2, 3, 4, 5), 10.0, 1.25),
        Loss("b", (9, 0, 0, 0, 0), 0.0, 0.0),
    ]
    lines = table(losses, width).splitlines()
    assert len(lines) == 5 and max(map(len, lines)) <= width
    assert "12.50%" in lines[2] and lines[2].split()[1:] == ["60", "40.00%", "35.00%", "12.50%"]
    assert ("model.layers" in lines[2]) == (width == 200)
    assert lines[-1].startswith("all")


def test_the_command_prints_what_a_file_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = pytest.importorskip("safetensors.torch").save_file
    nvfp4, dense = random_weight(16, 64, 1), torch.randn(32, 32)
    save(
        {
            "q.weight": nvfp4.packed,
            "q.weight_scale": nvfp4.block_scales,
            "q.weight_scale_2": nvfp4.global_scale,
            "plain.weight": dense,
            "norm.weight": torch.ones(32),
            "narrow.weight": torch.ones(4, 6),
        },
        tmp_path / "model.safetensors",
    )
    assert main(["sparse24", str(tmp_path / "model.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["plain.weight", "q.weight", "all"]
    assert lines[3].split()[1] == "1,024"
    expected = measure(nvfp4).share_of_energy_dropped
    assert math.isclose(float(lines[3].split()[-1].rstrip("%")) / 100, expected, abs_tol=1e-4)


def test_the_command_refuses_what_is_no_file_of_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    assert main(["sparse24", str(tmp_path / "junk")]) == 2
    assert main(["sparse24", str(tmp_path / "missing")]) == 2
    junk, missing = capsys.readouterr().err.splitlines()
    assert "junk cannot be read as safetensors" in junk
    assert "missing cannot be read: No such file or directory" in missing


# The operator.


@pytest.fixture(scope="session")
def operators(toolkit: Path) -> None:
    load_without_gpu(toolkit, "sparse24")


@pytest.fixture(scope="session", params=ROUTES)
def machine_code(request: pytest.FixtureRequest, toolkit: Path) -> dict[str, list[str]]:
    return instructions(toolkit, built("sparse24", request.param))


SCHEMA = (
    "gb10::sparse24_gemv(Tensor x, Tensor values, Tensor positions, Tensor scales, Tensor global_scale, "
    "Tensor? bias, Tensor(a!) out) -> ()"
)
Arguments = dict[str, Any]


@pytest.fixture
def good(operators: None) -> Arguments:
    """Arguments that only their device speaks against: N = 40, K = 272."""
    weight, _ = pack(random_weight(40, 272, 2), allow_loss=True)
    return {
        "x": torch.zeros(2, 272, dtype=torch.bfloat16),
        "values": weight.values,
        "positions": weight.positions,
        "scales": weight.scales,
        "global_scale": weight.global_scale,
        "bias": torch.zeros(40, dtype=torch.bfloat16),
        "out": torch.zeros(2, 40, dtype=torch.bfloat16),
    }


def refusal(arguments: Arguments) -> str:
    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.sparse24_gemv(*arguments.values())
    return next(line for line in str(caught.value).splitlines() if "gb10::sparse24_gemv:" in line)


def test_schema_and_a_cpu_tensor_is_refused_last(good: Arguments) -> None:
    assert str(torch.ops.gb10.sparse24_gemv.default._schema) == SCHEMA
    assert "x is not on a CUDA device" in refusal(good)
    assert "x is not on a CUDA device" in refusal({**good, "bias": None})


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("values", lambda t: t.int(), "values is int32; it must be uint8"),
    ("positions", lambda t: t.int(), "positions is int32; it must be uint8"),
    ("scales", lambda t: t.view(torch.uint8), "scales is uint8; it must be float8_e4m3fn"),
    ("global_scale", lambda t: t.double(), "global_scale is float64; it must be float32"),
    ("bias", lambda t: t.half(), "bias is float16; it must be bfloat16"),
    ("out", lambda t: t.half(), "out is float16; it must be bfloat16"),
    ("x", lambda t: t.new_zeros(17, 272), "x has 17 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.new_zeros(2, 264), "x has 264 columns (K); K must be a multiple of 16"),
    (
        "x",
        lambda t: t.new_zeros(2, 16400),
        "x has 16400 columns (K); K must be a multiple of 16, at most 16384",
    ),
    ("x", lambda t: t.new_zeros(2, 528), "values has shape [3, 2, 1024]; it must be [3, 3, 1024]"),
    ("out", lambda t: t.new_zeros(2, 50), "values has shape [3, 2, 1024]; it must be [4, 2, 1024]"),
    ("out", lambda t: t[:1], "out has shape [1, 40]; it must be [2, any]"),
    ("positions", lambda t: t[..., 1:], "positions has shape [3, 2, 383]; it must be [3, 2, 384]"),
    ("scales", lambda t: t[:, :1], "scales has shape [3, 1, 256]; it must be [3, 2, 256]"),
    ("global_scale", lambda t: torch.ones(2), "global_scale has shape [2]; it must have one element"),
    ("bias", lambda t: t[:1], "bias has shape [1]; it must be [40]"),
    ("values", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "values is not contiguous"),
    (
        "x",
        lambda t: torch.zeros(545, dtype=t.dtype)[1:].reshape(2, 272),
        "x does not begin at a multiple of 16",
    ),
]


@pytest.mark.parametrize(("name", "change", "words"), BAD, ids=[f"{name}: {words}" for name, _, words in BAD])
def test_bad_arguments_are_refused_by_name(
    name: str, change: Callable[[Any], Any], words: str, good: Arguments
) -> None:
    assert words in refusal({**good, name: change(good[name])})


def test_the_kernel_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """The kernel's own source, thread by thread (host/block.h), with weights that `pack` made."""
    with (tmp_path / "weights").open("wb") as file:
        for rows, columns in [(16, 256), (40, 272), (1, 16), (33, 2304), (70, 1040)]:
            weight = random_weight(rows, columns, rows, zeros=0.2)
            packed, _ = pack(weight, allow_loss=True)
            kept = unpack(packed)
            file.write(struct.pack("<ii", rows, columns))
            for part in (packed.values, packed.positions, packed.scales.view(torch.uint8)):
                file.write(part.numpy().tobytes())
            file.write(dequantize(kept.packed, kept.block_scales, 1.0).double().numpy().tobytes())
    printed = on_the_host.run("sparse24", tmp_path, toolkit, tmp_path / "weights")
    assert "80 runs, 0 wrong" in printed


def test_the_moe_on_the_cpu(tmp_path: Path, toolkit: Path) -> None:
    """Both of its kernels, with ids of every kind, both orders of gate and up, and each activation."""
    with (tmp_path / "weights").open("wb") as file:
        for experts, hidden, intermediate in [(6, 272, 32), (3, 16, 16), (9, 512, 304)]:
            file.write(struct.pack("<iii", experts, hidden, intermediate))
            for seed, (rows, columns) in enumerate([(2 * intermediate, hidden), (hidden, intermediate)]):
                generator = torch.Generator().manual_seed(seed)
                codes = torch.randint(0, 16, (experts, rows, columns), dtype=torch.uint8, generator=generator)
                blocks = (experts, rows, columns // 16)
                scales = torch.randint(0x20, 0x50, blocks, dtype=torch.uint8, generator=generator)
                parts = (pack_codes(codes), scales.view(torch.float8_e4m3fn), torch.ones(experts))
                packed, _ = pack(NvFp4Tensor(*parts), allow_loss=True)
                kept = unpack(packed)
                for part in (packed.values, packed.positions, packed.scales.view(torch.uint8)):
                    file.write(part.numpy().tobytes())
                flat = (kept.packed.flatten(0, 1), kept.block_scales.flatten(0, 1))
                file.write(dequantize(*flat, 1.0).double().numpy().tobytes())
    printed = on_the_host.run("sparse24_moe", tmp_path, toolkit, tmp_path / "weights")
    assert "30 runs, 0 wrong" in printed


MOE_SCHEMA = (
    "gb10::sparse24_moe(Tensor x, Tensor w13_values, Tensor w13_positions, Tensor w13_scales, "
    "Tensor w13_global, Tensor w2_values, Tensor w2_positions, Tensor w2_scales, Tensor w2_global, "
    "SymInt intermediate, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map, str activation, "
    "float limit, float alpha, float beta, bool up_first, bool router_weight_on_input, "
    "Tensor(a!) workspace, Tensor(b!) out) -> ()"
)


@pytest.fixture
def good_moe(operators: None) -> Arguments:
    """Three experts, hidden 272, intermediate 48, two tokens with two slots; only their device is wrong."""
    fp8 = torch.float8_e4m3fn
    return {
        "x": torch.zeros(2, 272, dtype=torch.bfloat16),
        "w13_values": torch.zeros(3, 6, 2, 1024, dtype=torch.uint8),
        "w13_positions": torch.zeros(3, 6, 2, 384, dtype=torch.uint8),
        "w13_scales": torch.zeros(3, 6, 2, 256, dtype=fp8),
        "w13_global": torch.ones(3, 2),
        "w2_values": torch.zeros(3, 17, 1, 1024, dtype=torch.uint8),
        "w2_positions": torch.zeros(3, 17, 1, 384, dtype=torch.uint8),
        "w2_scales": torch.zeros(3, 17, 1, 256, dtype=fp8),
        "w2_global": torch.ones(3),
        "intermediate": 48,
        "topk_ids": torch.zeros(2, 2, dtype=torch.int32),
        "topk_weights": torch.zeros(2, 2),
        "expert_map": torch.zeros(7, dtype=torch.int32),
        "activation": "silu",
        "limit": math.inf,
        "alpha": 1.0,
        "beta": 0.0,
        "up_first": False,
        "router_weight_on_input": False,
        "workspace": torch.zeros(192),
        "out": torch.zeros(2, 272, dtype=torch.bfloat16),
    }


def moe_refusal(arguments: Arguments) -> str:
    with pytest.raises(RuntimeError) as caught:
        torch.ops.gb10.sparse24_moe(*arguments.values())
    return next(line for line in str(caught.value).splitlines() if "gb10::sparse24_moe:" in line)


def test_moe_schema_and_a_cpu_tensor_is_refused_last(good_moe: Arguments) -> None:
    schema = str(torch.ops.gb10.sparse24_moe.default._schema)
    assert schema.replace("SymInt ", "int ") == MOE_SCHEMA.replace("SymInt ", "int ")
    for changes in ({}, {"expert_map": None}, {"w13_global": torch.ones(3)}, {"activation": "gelu"}):
        assert "x is not on a CUDA device" in moe_refusal({**good_moe, **changes})


BAD_MOE: list[tuple[str, Callable[[Any], Any], str]] = [
    ("activation", lambda _: "relu2_no_mul", "activation is 'relu2_no_mul'; it must be one of silu, gelu,"),
    ("activation", lambda _: "swigluoai", "activation is 'swigluoai'; it must be one of silu, gelu,"),
    ("limit", lambda _: 0.0, "limit is 0.000000; it must be positive"),
    ("alpha", lambda _: math.nan, "alpha or beta is not finite"),
    ("x", lambda t: t.float(), "x is float32; it must be bfloat16 or float16"),
    ("x", lambda t: t.half(), "out is bfloat16; it must be float16"),
    ("w13_values", lambda t: t.int(), "w13_values is int32; it must be uint8"),
    ("w2_scales", lambda t: t.view(torch.uint8), "w2_scales is uint8; it must be float8_e4m3fn"),
    ("topk_ids", lambda t: t.float(), "topk_ids is float32; it must be int32 or int64"),
    ("topk_weights", lambda t: t.half(), "topk_weights is float16; it must be float32"),
    ("expert_map", lambda t: t.long(), "expert_map is int64; it must be int32"),
    ("workspace", lambda t: t.half(), "workspace is float16; it must be float32"),
    ("x", lambda t: t.new_zeros(17, 272), "x has 17 rows (tokens); it must have 1 to 16"),
    ("x", lambda t: t.new_zeros(2, 264), "hidden (the columns of x) is 264; it must be a multiple of 16"),
    ("intermediate", lambda _: 40, "intermediate is 40; it must be a multiple of 16, at most 65536"),
    (
        "intermediate",
        lambda _: 64,
        "w13_values has shape [3, 6, 2, 1024]; it must be [3, 8, 2, 1024]",
    ),
    ("w2_values", lambda t: t[:0], "w2_values holds 0 experts; it must hold 1 to 65536"),
    ("w2_values", lambda t: t[:, :16], "w2_values has shape [3, 16, 1, 1024]; it must be [3, 17, 1, 1024]"),
    ("w13_global", lambda t: t[:, :1], "w13_global has shape [3, 1]; it must be [3, 2]"),
    ("w2_global", lambda t: t[:2], "w2_global has shape [2]; it must be [3]"),
    ("topk_ids", lambda t: t.new_zeros(2, 33), "topk_ids has 33 columns (topk); it must have 1 to 32"),
    ("topk_weights", lambda t: t[:, :1], "topk_weights has shape [2, 1]; it must be [2, 2]"),
    ("workspace", lambda t: t[:191], "workspace has 191 elements; it must have at least 192"),
    ("out", lambda t: t[:1], "out has shape [1, 272]; it must be [2, 272]"),
    ("topk_ids", lambda t: t.t(), "topk_ids is not contiguous"),
    ("workspace", lambda t: torch.zeros(193)[1:], "workspace does not begin at a multiple of 16"),
]


@pytest.mark.parametrize(
    ("name", "change", "words"), BAD_MOE, ids=[f"{name}: {words}" for name, _, words in BAD_MOE]
)
def test_bad_moe_arguments_are_refused_by_name(
    name: str, change: Callable[[Any], Any], words: str, good_moe: Arguments
) -> None:
    assert words in moe_refusal({**good_moe, name: change(good_moe[name])})


def test_machine_code(machine_code: dict[str, list[str]]) -> None:
    """Every target has the sparse matrix instruction, with both selectors; nothing spills."""
    found = {"8sparse244gemv": 0, "8sparse247gate_up": 0, "8sparse244down": 0}
    for name, code in machine_code.items():
        kernel = next((kernel for kernel in found if kernel in name), None)
        if kernel is None:
            continue
        found[kernel] += 1
        text = "\n".join(code)
        assert not re.search(r"\b(LDL|STL)\b", text), name
        selectors = re.findall(r"HMMA\.SP\.16832\.F32 .*(0x[01])$", text, re.MULTILINE)
        groups = int(re.findall(r"I(?:6__half|13__nv_bfloat16)Li(\d+)E", name)[0])
        assert selectors.count("0x0") == selectors.count("0x1") == 16 * groups, name
    targets = len({name.split()[0] for name in machine_code})
    assert targets and found == {
        "8sparse244gemv": 14 * targets,
        "8sparse247gate_up": 6 * targets,
        "8sparse244down": 4 * targets,
    }
