"""gb10::attention_front and attention_gate on a GPU against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.attention_front import (  # noqa: E402
    Cache,
    Heads,
    Rope,
    attention_front,
    attention_gate,
)

BF16, F16, F8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
EPSILON = 1e-6
POSITIONS, BLOCKS, BLOCK_SIZE = 300, 9, 5
TOKENS = (1, 2, 3, 4, 5, 8, 16, 133)


@dataclass(frozen=True)
class Shape:
    name: str
    heads: int
    kv_heads: int
    size: int
    rotary: int
    gated: bool
    plus_one: bool
    sections: tuple[int, int] | None = None

    @property
    def columns(self) -> int:
        return (self.heads * (2 if self.gated else 1) + 2 * self.kv_heads) * self.size


NEXT = Shape("qwen3-next", 16, 2, 256, 64, True, True)
SHAPES = [
    NEXT,
    Shape("qwen3.5-35b-a3b", 16, 2, 256, 64, True, True, (11, 10)),
    Shape("qwen3-moe", 32, 4, 128, 128, False, False),
    Shape("testbed", 4, 2, 64, 16, True, True),
    Shape("tp2", 8, 1, 256, 64, True, True),
    Shape("odd", 3, 1, 128, 48, True, False),
]
ids = [shape.name for shape in SHAPES]


class Problem:
    """Random weights, tokens, positions and slots; the cache is as vLLM lays it out."""

    def __init__(self, shape: Shape, tokens: int, device: Any, dtype: Any = BF16) -> None:
        self.shape, self.tokens, self.dtype = shape, tokens, dtype

        def normal(*size: int) -> Any:
            return torch.randn(size, device=device).to(dtype)

        self.qkv = normal(tokens, shape.columns + 16)[:, : shape.columns]
        shift = 0.0 if shape.plus_one else 1.0
        self.heads = Heads(
            normal(shape.size) * 0.3 + shift,
            normal(shape.size) * 0.3 + shift,
            EPSILON,
            shape.plus_one,
            shape.heads,
            shape.kv_heads,
            shape.gated,
        )
        rows = (3, tokens) if shape.sections else (tokens,)
        positions = torch.randint(0, POSITIONS, rows, device=device)
        angles = torch.rand(POSITIONS, shape.rotary // 2, device=device) * 6.28
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1).to(dtype)
        self.rope = Rope(cos_sin, positions, *(shape.sections or ()))
        count = min(tokens, BLOCKS * BLOCK_SIZE)
        order = torch.randperm(BLOCKS * BLOCK_SIZE, device=device)[:count]
        if count > 2:
            order[1], order[2] = -1, BLOCKS * BLOCK_SIZE  # padding, and one that does not exist
        self.slots = order
        self.scales = [torch.tensor([value], device=device) for value in (0.31, 0.023, 1.7)]
        torch.cuda.synchronize()

    def cache(self, poisoned: Callable[..., Any], dtype: Any) -> Any:
        s = self.shape
        return poisoned(BLOCKS, s.kv_heads, BLOCK_SIZE, 2 * s.size, dtype=dtype)

    def views(self, cache: Any) -> tuple[Any, Any]:
        keys, values = cache.transpose(1, 2).split(self.shape.size, dim=-1)
        return keys, values

    def value(self) -> Any:
        s = self.shape
        return self.qkv[:, -s.kv_heads * s.size :].unflatten(1, (s.kv_heads, s.size))

    def turned(self) -> list[tuple[Any, Any]]:
        """Of q and of k: float64 before the last rounding, and what a step of each number is one of."""
        s, wide = self.shape, self.qkv.double()
        q = wide[:, : s.columns - 2 * s.kv_heads * s.size].unflatten(1, (s.heads, -1))[..., : s.size]
        k = wide[:, s.columns - 2 * s.kv_heads * s.size : s.columns - s.kv_heads * s.size]
        half = s.rotary // 2
        rows = self.rope.positions if s.sections else self.rope.positions.expand(3, -1)
        height, width = s.sections or (0, 0)
        axes = [
            1 if i % 3 == 1 and i < 3 * height else 2 if i % 3 == 2 and i < 3 * width else 0
            for i in range(half)
        ]
        angles = torch.arange(half, device=wide.device)
        table = self.rope.cos_sin.double()[rows]
        cosines = table[axes, :, angles].T[:, None]
        sines = table[axes, :, half + angles].T[:, None]
        made = []
        for x, weight in ((q, self.heads.q_weight), (k.unflatten(1, (s.kv_heads, -1)), self.heads.k_weight)):
            scaled = x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
            if not s.plus_one:
                scaled = scaled.to(self.dtype).double()
            n = (scaled * (weight.double() + s.plus_one)).to(self.dtype).double()
            one, two, rest = n.split((half, half, s.size - s.rotary), dim=-1)
            y = torch.cat((one * cosines - two * sines, two * cosines + one * sines, rest), dim=-1)
            parts = ((one * cosines).abs() + (two * sines).abs(), (two * cosines).abs() + (one * sines).abs())
            made.append((y, torch.cat((*parts, rest.abs()), dim=-1)))
        return made

    def call(self, query: Any, **more: Any) -> None:
        attention_front(self.qkv, self.heads, self.rope, query=query, **more)

    def stored(self, cache: Any, keys: Any, values: Any) -> Any:
        """The cache afterwards, by the slots."""
        wanted = cache.clone()
        for place, numbers in zip(self.views(wanted), (keys, values), strict=True):
            for token, slot in enumerate(self.slots.tolist()):
                if 0 <= slot < BLOCKS * BLOCK_SIZE:
                    place[slot // BLOCK_SIZE, slot % BLOCK_SIZE] = numbers[token]
        return wanted


def same_bytes(one: Any, other: Any) -> bool:
    return bool(torch.equal(one.view(torch.uint8), other.view(torch.uint8)))


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_against_float64(
    shape: Shape, tokens: int, dtype: Any, device: Any, poisoned: Callable[..., Any]
) -> None:
    problem = Problem(shape, tokens, device, dtype)
    query = poisoned(tokens, shape.heads * shape.size, dtype=dtype)
    key = poisoned(tokens, shape.kv_heads * shape.size, dtype=dtype)
    cache = problem.cache(poisoned, dtype)
    before = problem.qkv.clone(), cache.clone()
    problem.call(query, key_out=key, cache=Cache(*problem.views(cache), problem.slots))
    unit = torch.finfo(dtype).eps
    for is_now, (exact, size) in zip((query, key), problem.turned(), strict=True):
        now = is_now.unflatten(1, (-1, shape.size))
        # A norm that FP32 rounds the other way is a step of a product; then half a step more.
        assert bool(((now.double() - exact).abs() <= 1.55 * unit * size + 1e-6).all())
        assert float((now != exact.to(dtype)).double().mean()) < 0.03
    keys = key.unflatten(1, (shape.kv_heads, shape.size))
    assert same_bytes(cache, problem.stored(before[1], keys, problem.value()))
    assert torch.equal(problem.qkv, before[0])


@pytest.mark.parametrize("eight", [F8, torch.uint8])
@pytest.mark.parametrize("tokens", (1, 5, 16))
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_eight_bits(shape: Shape, tokens: int, eight: Any, device: Any, poisoned: Callable[..., Any]) -> None:
    """Bit for bit what vLLM's quantisation of q and its cache update make of the numbers in 16 bit."""
    problem = Problem(shape, tokens, device)
    q_scale, k_scale, v_scale = problem.scales
    query = poisoned(tokens, shape.heads * shape.size)
    key = poisoned(tokens, shape.kv_heads * shape.size)
    problem.call(query, key_out=key)
    cache, made = problem.cache(poisoned, eight), poisoned(tokens, shape.heads * shape.size, dtype=F8)
    before = cache.clone()
    views = problem.views(cache)
    problem.call(made, cache=Cache(*views, problem.slots, k_scale, v_scale), q_scale=q_scale)

    def rounded(x: Any) -> Any:
        return x.clamp(-448, 448).to(F8)

    assert same_bytes(made, rounded(query.float() * q_scale.reciprocal()))
    keys = rounded(key.float() / k_scale).view(eight).unflatten(1, (shape.kv_heads, shape.size))
    values = rounded(problem.value().float() / v_scale).view(eight)
    assert same_bytes(cache, problem.stored(before, keys, values))


def test_no_cache_fewer_slots_and_positions_beyond(device: Any, poisoned: Callable[..., Any]) -> None:
    problem = Problem(NEXT, 5, device)
    query, other = (poisoned(5, NEXT.heads * NEXT.size) for _ in range(2))
    cache = problem.cache(poisoned, BF16)
    before = cache.clone()
    problem.slots = torch.tensor([7, 3, 1], device=device)
    problem.call(query, cache=Cache(*problem.views(cache), problem.slots))
    key = poisoned(5, NEXT.kv_heads * NEXT.size)
    problem.call(other, key_out=key)
    assert torch.equal(query, other)
    keys = key.unflatten(1, (NEXT.kv_heads, NEXT.size))
    assert same_bytes(cache, problem.stored(before, keys, problem.value()))
    for position, nearest in ((POSITIONS + 9, POSITIONS - 1), (-3, 0)):
        for number, out in ((position, query), (nearest, other)):
            problem.rope = problem.rope._replace(positions=torch.full((5,), number, device=device))
            problem.call(out)
        assert torch.equal(query, other)
    problem.rope = problem.rope._replace(positions=torch.arange(5, device=device))
    problem.call(query)
    problem.rope = problem.rope._replace(positions=torch.arange(5, device=device, dtype=torch.int32))
    problem.call(other)
    assert torch.equal(query, other)


def test_a_graph_reads_what_is_there_when_it_runs(device: Any, poisoned: Callable[..., Any]) -> None:
    """Positions and slots that the kernel ahead in the graph writes: what was read early does not count."""
    problem = Problem(NEXT, 4, device)
    cache = problem.cache(poisoned, BF16)
    query = poisoned(4, NEXT.heads * NEXT.size)
    slots, positions = problem.slots.clone(), problem.rope.positions.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        problem.slots.copy_(slots)
        problem.rope.positions.copy_(positions)
        problem.call(query, cache=Cache(*problem.views(cache), problem.slots))
    for _ in range(3):
        cache.view(torch.uint8).fill_(0xFF)
        slots.copy_(torch.randperm(BLOCKS * BLOCK_SIZE, device=device)[:4])
        positions.copy_(torch.randint(0, POSITIONS, (4,), device=device))
        problem.slots.fill_(-1), problem.rope.positions.fill_(0)
        graph.replay()
        wanted, other = problem.cache(poisoned, BF16), poisoned(4, NEXT.heads * NEXT.size)
        problem.call(other, cache=Cache(*problem.views(wanted), problem.slots))
        assert torch.equal(query, other) and same_bytes(cache, wanted)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.gated], ids=lambda shape: shape.name)
def test_the_gate(shape: Shape, tokens: int, dtype: Any, device: Any) -> None:
    problem = Problem(shape, tokens, device, dtype)
    gates = problem.qkv[:, : 2 * shape.heads * shape.size].unflatten(1, (shape.heads, 2, shape.size))[:, :, 1]
    out = torch.randn(tokens, shape.heads, shape.size, device=device).to(dtype)
    exact = out.double() * gates.double().sigmoid()
    again = out.clone()
    attention_gate(out, gates)
    unit = torch.finfo(dtype).eps
    assert bool(((out.double() - exact).abs() <= 0.51 * unit * exact.abs() + 1e-6).all())
    attention_gate(again, gates)
    assert torch.equal(out, again)


def test_the_schema(device: Any, check_operator: Callable[..., None], poisoned: Callable[..., Any]) -> None:
    problem = Problem(NEXT, 3, device)
    s, h, r = NEXT, problem.heads, problem.rope
    # Two of their own: opcheck does not take outputs that share memory.
    keys, values = (poisoned(BLOCKS, BLOCK_SIZE, s.kv_heads, s.size, dtype=F8) for _ in range(2))
    outputs = (poisoned(3, s.heads * s.size, dtype=F8), poisoned(3, s.kv_heads * s.size), keys, values)
    arguments = (
        *(problem.qkv, h.q_weight, h.k_weight, EPSILON, True, r.cos_sin, r.positions, 0, 0),
        *(s.heads, s.kv_heads, True, *outputs, torch.tensor([4, 2, 0], device=device), *problem.scales),
    )
    check_operator(torch.ops.gb10.attention_front.default, arguments)
    out = torch.randn(3, s.heads, s.size, device=device).to(BF16)
    gates = torch.randn(3, s.heads, 2, s.size, device=device).to(BF16)[:, :, 1]
    check_operator(torch.ops.gb10.attention_gate.default, (out, gates))
