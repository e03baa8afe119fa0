"""gb10::gdn_decode on a GPU against float64, and against vLLM's own kernels where vLLM can be imported."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gb10.kernels.gdn_decode import gdn_decode  # noqa: E402
from gb10_lab.kernel_bench.gdn import split  # noqa: E402
from gb10_lab.kernel_bench.shapes import Gdn  # noqa: E402

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
OUT_LIMIT = {BF16: 4e-3, F16: 6e-4}
STATE_LIMIT = {BF16: 2.5e-3, F16: 4e-4, F32: 2e-3}
"""A value of the convolution rounded the other way is a step of its dtype in an FP32 state too."""
EPSILON = 1e-6


QWEN3_NEXT = Gdn("qwen3-next", "gdn", 16, 32, 128, 128, interleaved=True)
SHAPES = [
    QWEN3_NEXT,
    Gdn("qwen3.5-35b-a3b", "gdn", 16, 32, 128, 128, interleaved=False),
    Gdn("qwen3.5-27b", "gdn", 16, 48, 128, 128, interleaved=False),
    Gdn("qwen3.5-122b-a10b", "gdn", 16, 64, 128, 128, interleaved=False),
    Gdn("testbed", "gdn", 2, 4, 64, 64, interleaved=True),
    Gdn("tp8", "gdn", 2, 4, 128, 128, interleaved=True),
    Gdn("narrow keys", "gdn", 3, 3, 64, 128, interleaved=False),
    Gdn("narrow values", "gdn", 2, 16, 128, 64, interleaved=True),
]
ids = [shape.model for shape in SHAPES]


class Layer:
    """Random weights and states. A slot's page holds both states, as vLLM lays them out."""

    def __init__(
        self,
        shape: Gdn,
        device: Any,
        *,
        dtype: Any = BF16,
        state: Any = BF16,
        slots: int = 40,
        taps: int = 3,
    ) -> None:
        self.shape, self.dtype = shape, dtype

        def normal(*size: int, spread: float = 1.0) -> Any:
            return torch.randn(size, device=device) * spread

        self.conv_weight = normal(shape.channels, 4, spread=0.4).to(dtype)
        self.conv_bias = normal(shape.channels, spread=0.1).to(dtype)
        self.A_log = torch.rand(shape.value_heads, device=device).mul_(15).add_(1).log_()
        self.dt_bias = (torch.rand(shape.value_heads, device=device) * 4 - 4).to(dtype)
        self.norm_weight = 1 + 0.1 * normal(shape.value_size)
        per_slot = shape.values * shape.key_size
        margin = 64
        self.states = (0.1 * normal(slots, per_slot + margin)).to(state)
        self.state = self.states[:, :per_slot].view(
            slots, shape.value_heads, shape.value_size, shape.key_size
        )
        self.convs = normal(slots, taps, shape.channels).to(dtype)
        self.conv_state = self.convs.transpose(1, 2)
        torch.cuda.synchronize()

    def mixed(self, tokens: int, beyond: int = 0) -> Any:
        device = self.state.device
        return torch.randn(tokens, self.shape.columns + beyond, device=device).to(self.dtype)

    def call(self, mixed: Any, slots: Any, *, bias: bool = True, **options: Any) -> Any:
        return gdn_decode(
            mixed,
            self.conv_state,
            self.conv_weight,
            self.conv_bias if bias else None,
            self.A_log,
            self.dt_bias,
            self.state,
            self.norm_weight,
            EPSILON,
            slots,
            self.shape.key_heads,
            self.shape.value_heads,
            interleaved=self.shape.interleaved,
            **options,
        )

    def expected(
        self,
        mixed: Any,
        slots: Any,
        accepted: Any = None,
        *,
        bias: bool = True,
        counts: list[int] | None = None,
    ) -> tuple[Any, Any, Any]:
        """The output, the states and the convolution's states in float64, rounded where the kernel rounds.

        ``counts``: tokens of each sequence, where they differ; rows after them give zeros.
        """
        s, steps = self.shape, slots.shape[1]
        counts = counts or [steps] * len(slots)
        begins = list(itertools.accumulate(counts, initial=0))
        group = s.value_heads // s.key_heads
        out = torch.zeros(mixed.shape[0], s.values, dtype=torch.float64, device=mixed.device)
        states, convs = self.state.double(), self.conv_state.clone()
        channels, z, b, a = split(self.shape, mixed)
        real = range(1, self.state.shape[0])
        for n, row in enumerate(slots.tolist()):
            start = 0 if accepted is None else min(max(int(accepted[n]) - 1, 0), steps - 1)
            if counts[n] == 0 or row[0] not in real or row[start] not in real:
                continue
            tokens = slice(begins[n], begins[n + 1])
            window = torch.cat([self.conv_state[row[0], :, start : start + 3], channels[tokens].T], dim=1)
            convs[row[0], :, : counts[n] + 2] = window[:, 1:]
            y = (window.double().unfold(1, 4, 1) * self.conv_weight.double()[:, None]).sum(2)
            if bias:
                y += self.conv_bias.double()[:, None]
            y = torch.nn.functional.silu(y).to(self.dtype).double().T
            q, k, v = y.split([s.keys, s.keys, s.values], dim=1)
            state = self.state[row[start]].double()
            for i in range(counts[n]):
                token = begins[n] + i

                def unit(x: Any) -> Any:
                    heads = x.view(s.key_heads, s.key_size)
                    heads = heads * (heads.square().sum(1, keepdim=True) + 1e-6).rsqrt()
                    return heads.repeat_interleave(group, dim=0)

                softplus = torch.nn.functional.softplus(a[token].double() + self.dt_bias.double())
                decay = torch.exp(-self.A_log.double().exp() * softplus)[:, None, None]
                strength = b[token].double().sigmoid()[:, None]
                query, key = unit(q[i]) * s.key_size**-0.5, unit(k[i])
                state = state * decay
                known = torch.einsum("hvk,hk->hv", state, key)
                change = strength * (v[i].view(s.value_heads, s.value_size) - known)
                state = state + torch.einsum("hv,hk->hvk", change, key)
                o = torch.einsum("hvk,hk->hv", state, query).to(self.dtype).double()
                state = state.to(self.state.dtype).double()
                o = o * (o.square().mean(1, keepdim=True) + EPSILON).rsqrt() * self.norm_weight.double()
                out[token] = o.flatten() * torch.nn.functional.silu(z[token].double())
                if row[i] in real:
                    states[row[i]] = state
        return out, states, convs

    def clone(self) -> Layer:
        other = object.__new__(Layer)
        other.__dict__.update(self.__dict__)
        other.states, other.convs = self.states.clone(), self.convs.clone()
        other.state = other.states[:, : self.shape.values * self.shape.key_size].view(self.state.shape)
        other.conv_state = other.convs.transpose(1, 2)
        return other


def test_float64_is_the_reference_models_layer(device: Any, relative_l2: Any) -> None:
    """What the tests compare with, eight tokens from an empty state, against tests/reference."""
    from reference.layers import GatedDeltaNet

    shape = SHAPES[4]
    layer = Layer(shape, device, dtype=F16, state=F32, taps=10)
    layer.states.zero_()
    layer.convs.zero_()
    mixed = layer.mixed(8)
    slots = slots_of(layer, 1, 8)
    exact, _, _ = layer.expected(mixed, slots, bias=False)

    def as_it_is(x: Any) -> Any:
        return x

    values = shape.channels + shape.values
    model = GatedDeltaNet(
        in_qkvz=lambda x: x[:, :values],  # type: ignore[arg-type]
        in_ba=lambda x: x[:, values:],  # type: ignore[arg-type]
        conv=layer.conv_weight.float().cpu(),
        log_decay=layer.A_log.cpu(),
        step_bias=layer.dt_bias.float().cpu(),
        norm=layer.norm_weight.cpu(),
        out_input=as_it_is,  # type: ignore[arg-type]
        out=as_it_is,  # type: ignore[arg-type]
        key_heads=shape.key_heads,
        value_heads=shape.value_heads,
        key_size=shape.key_size,
        value_size=shape.value_size,
        eps=EPSILON,
    )
    assert relative_l2(exact.cpu(), model(mixed.float().cpu())) < 2e-3


def slots_of(layer: Layer, n: int, steps: int = 1) -> Any:
    """Distinct slots in no order, int32 ``[n, steps]``."""
    order = torch.randperm(layer.state.shape[0] - 1, device=layer.state.device)[: n * steps] + 1
    return order.int().view(n, steps).contiguous()


def check(layer: Layer, before: Layer, out: Any, wanted: tuple[Any, Any, Any], slots: Any, near: Any) -> None:
    """The output, the written states, and that nothing else changed: other slots, and between them."""
    exact, states, convs = wanted
    assert near(out, exact, OUT_LIMIT[layer.dtype])
    used = [slot for slot in slots.flatten().tolist() if 0 < slot < layer.state.shape[0]]
    for slot in used:
        assert near(layer.state[slot], states[slot], STATE_LIMIT[layer.state.dtype])
    assert torch.equal(layer.conv_state, convs)
    others = [slot for slot in range(layer.state.shape[0]) if slot not in used]
    assert torch.equal(layer.states[others], before.states[others])
    between = layer.shape.values * layer.shape.key_size
    assert torch.equal(layer.states[:, between:], before.states[:, between:])


@pytest.mark.parametrize("state", [BF16, F32], ids=["state-bf16", "state-f32"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16])
def test_one_token(n: int, shape: Gdn, state: Any, device: Any, poisoned: Any, near: Any) -> None:
    layer = Layer(shape, device, state=state)
    before = layer.clone()
    slots, mixed = slots_of(layer, n), layer.mixed(n, beyond=6)
    wanted = layer.expected(mixed, slots)
    out = poisoned(n, shape.values)
    layer.call(mixed, slots.flatten(), out=out)
    check(layer, before, out, wanted, slots, near)


@pytest.mark.parametrize("state", [BF16, F32], ids=["state-bf16", "state-f32"])
@pytest.mark.parametrize("shape", SHAPES[:6], ids=ids[:6])
@pytest.mark.parametrize(("n", "steps"), [(1, 2), (1, 5), (2, 3), (4, 4), (4, 8)])
def test_verifying_drafts(
    n: int, steps: int, shape: Gdn, state: Any, device: Any, poisoned: Any, near: Any
) -> None:
    layer = Layer(shape, device, state=state, taps=steps + 3)
    before = layer.clone()
    slots, mixed = slots_of(layer, n, steps), layer.mixed(n * steps)
    accepted = torch.randint(1, steps + 1, (n,), dtype=torch.int32, device=device)
    wanted = layer.expected(mixed, slots, accepted)
    out = poisoned(n * steps, shape.values)
    layer.call(mixed, slots, accepted=accepted, out=out)
    check(layer, before, out, wanted, slots, near)


RAGGED = [[1], [2, 1], [3, 1, 2], [8, 1, 5, 2], [1, 1, 1, 1], [4, 0, 3, 0], [2, 2, 2, 2]]


def starts_of(counts: list[int], device: Any) -> Any:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=device)


@pytest.mark.parametrize("state", [BF16, F32], ids=["state-bf16", "state-f32"])
@pytest.mark.parametrize("shape", SHAPES[:6], ids=ids[:6])
@pytest.mark.parametrize("counts", RAGGED, ids=str)
def test_drafts_of_unequal_length(
    counts: list[int], shape: Gdn, state: Any, device: Any, poisoned: Any, near: Any
) -> None:
    """Up to as many tokens as there are slots, none too; the rows after them are padding, and NaN."""
    steps = max(*counts, 3)
    layer = Layer(shape, device, state=state, taps=steps + 3)
    before = layer.clone()
    slots, mixed = slots_of(layer, len(counts), steps), layer.mixed(sum(counts) + 3)
    mixed[sum(counts) :] = float("nan")
    accepted = torch.randint(1, steps + 1, (len(counts),), dtype=torch.int32, device=device)
    wanted = layer.expected(mixed, slots, accepted, counts=counts)
    out = poisoned(sum(counts) + 3, shape.values)
    layer.call(mixed, slots, accepted=accepted, starts=starts_of(counts, device), out=out)
    assert bool((out[sum(counts) :] == 0).all())
    check(layer, before, out, wanted, slots, near)
    # Where each has one length, that is a call without starts, bit for bit.
    if set(counts) == {steps}:
        other = before.clone()
        assert torch.equal(other.call(mixed[:-3], slots, accepted=accepted), out[:-3])


def test_starts_that_are_none_touch_nothing_else(device: Any, poisoned: Any) -> None:
    """A kernel begins before what writes `starts` has ended: whatever is there, it stays in its tensors."""
    layer = Layer(SHAPES[4], device, taps=6)
    before = layer.clone()
    slots, mixed = slots_of(layer, 3, 4), layer.mixed(8)
    memory = poisoned(24, layer.shape.values)
    for bad in ([-5, 99, -(2**31), 2**31 - 1], [7, 8, 9, 10], [3, 2, 1, 0]):
        starts = torch.tensor(bad, dtype=torch.int32, device=device)
        layer.call(mixed, slots, starts=starts, out=memory[8:16])
        torch.cuda.synchronize()
        assert bool(memory[:8].isnan().all()) and bool(memory[16:].isnan().all())
        others = [slot for slot in range(layer.state.shape[0]) if slot not in slots.flatten().tolist()]
        assert torch.equal(layer.states[others], before.states[others])


@pytest.mark.parametrize("n", [1, 16])
def test_f16(n: int, device: Any, poisoned: Any, near: Any) -> None:
    layer = Layer(QWEN3_NEXT, device, dtype=F16, state=F16)
    before = layer.clone()
    slots, mixed = slots_of(layer, n), layer.mixed(n)
    wanted = layer.expected(mixed, slots, bias=False)
    out = poisoned(n, QWEN3_NEXT.values, dtype=F16)
    layer.call(mixed, slots.flatten(), bias=False, out=out)
    check(layer, before, out, wanted, slots, near)


@pytest.mark.parametrize("steps", [1, 3])
def test_slots_that_are_none(steps: int, device: Any, poisoned: Any, near: Any) -> None:
    """Padding rows give zeros and touch nothing; slots in strides, beyond the end, and negative ones."""
    layer = Layer(QWEN3_NEXT, device, taps=steps + 2)
    before = layer.clone()
    wide = torch.zeros(6, 2 * steps, dtype=torch.int32, device=device)
    slots = wide[:, ::2]
    slots.copy_(slots_of(layer, 6, steps))
    slots[1], slots[3, 0], slots[4] = 0, -1, layer.state.shape[0]
    mixed = layer.mixed(6 * steps)
    mixed[steps : 2 * steps] = float("nan")
    wanted = layer.expected(mixed, slots)
    out = poisoned(6 * steps, QWEN3_NEXT.values)
    layer.call(mixed, slots if steps > 1 else slots[:, 0], out=out)
    rows = out.view(6, steps, -1)
    assert bool((rows[[1, 3, 4]] == 0).all())
    written = slots.clone()
    written[[1, 3, 4]] = 0
    check(layer, before, out, wanted, written, near)


@pytest.mark.parametrize("layout", ["taps first", "taps last", "odd"])
def test_layouts_of_the_inputs(layout: str, device: Any, near: Any) -> None:
    """vLLM has both orders of channels and taps; a slot may begin anywhere."""
    layer = Layer(QWEN3_NEXT, device)
    old = layer.conv_state
    if layout == "taps last":
        layer.conv_state = old.contiguous()
    if layout == "odd":
        page = 3 * QWEN3_NEXT.channels + 1
        memory = torch.zeros(old.shape[0] * page, dtype=BF16, device=device)
        layer.conv_state = torch.as_strided(memory, old.shape, (page, 1, QWEN3_NEXT.channels))
        layer.conv_state.copy_(old)
    slots, mixed = slots_of(layer, 3), layer.mixed(3)
    exact, states, convs = layer.expected(mixed, slots)
    out = layer.call(mixed, slots.flatten())
    assert near(out, exact, OUT_LIMIT[BF16])
    assert torch.equal(layer.conv_state, convs)
    assert near(layer.state[slots[:, 0].long()], states[slots[:, 0].long()], STATE_LIMIT[BF16])


@pytest.mark.parametrize("state", [BF16, F32], ids=["state-bf16", "state-f32"])
def test_bits_do_not_depend_on_the_others(state: Any, device: Any) -> None:
    """A sequence alone, among 16, and with its tokens in one call: other kernels, the same bits."""
    layer = Layer(QWEN3_NEXT, device, state=state, slots=120, taps=9)
    slots, mixed = slots_of(layer, 16, 4), layer.mixed(64)
    several, serial, alone = layer.clone(), layer.clone(), layer.clone()
    out = several.call(mixed, slots, accepted=torch.ones(16, dtype=torch.int32, device=device))
    for i in range(4):
        torch.cuda.synchronize()
        step = serial.call(mixed.view(16, 4, -1)[:, i], slots[:, 0])
        torch.cuda.synchronize()
        assert torch.equal(step, out.view(16, 4, -1)[:, i])
        assert torch.equal(serial.state[slots[:, 0].long()], several.state[slots[:, i].long()])
        single = alone.call(mixed.view(16, 4, -1)[5:6, i], slots[5:6, 0])
        assert torch.equal(single, step[5:6])


def test_bits_do_not_depend_on_the_others_lengths(device: Any) -> None:
    """A ragged call for all gives what calls for each sequence give."""
    layer = Layer(QWEN3_NEXT, device, slots=120, taps=9)
    counts = [4, 1, 3, 2, 4, 1, 2, 3] * 2
    starts, slots = starts_of(counts, device), slots_of(layer, 16, 4)
    mixed = layer.mixed(sum(counts))
    accepted = torch.randint(1, 5, (16,), dtype=torch.int32, device=device)
    several, alone = layer.clone(), layer.clone()
    out = several.call(mixed, slots, accepted=accepted, starts=starts)
    for n, (first, last) in enumerate(itertools.pairwise(starts.tolist())):
        one = slice(n, n + 1)
        single = alone.call(
            mixed[first:last], slots[one], accepted=accepted[one], starts=starts_of([last - first], device)
        )
        assert torch.equal(single, out[first:last])
    assert torch.equal(alone.states, several.states) and torch.equal(alone.convs, several.convs)


def test_two_calls_give_the_same_bits(device: Any, poisoned: Any) -> None:
    first = Layer(QWEN3_NEXT, device)
    slots, mixed = slots_of(first, 16).flatten(), first.mixed(16)
    runs = [first, *(first.clone() for _ in range(4))]
    outs = [each.call(mixed, slots, out=poisoned(16, QWEN3_NEXT.values)) for each in runs]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert all(torch.equal(each.states, first.states) for each in runs)
    assert all(torch.equal(each.convs, first.convs) for each in runs)


def test_calls_on_one_state_follow_each_other(device: Any) -> None:
    """The kernel begins before the one ahead ends, and that one may be itself: 50 tokens in a row."""
    layer = Layer(QWEN3_NEXT, device)
    slots, mixed = slots_of(layer, 2).flatten(), layer.mixed(100).view(50, 2, -1)
    slow = layer.clone()
    wanted = []
    for token in mixed:
        wanted.append(slow.call(token, slots))
        torch.cuda.synchronize()
    for _ in range(3):
        fast = layer.clone()
        torch.cuda.synchronize()
        outs = [torch.empty_like(wanted[0]) for _ in range(50)]
        for token, out in zip(mixed, outs, strict=True):
            fast.call(token, slots, out=out)
        assert all(torch.equal(out, one) for out, one in zip(outs, wanted, strict=True))
        assert torch.equal(fast.states, slow.states) and torch.equal(fast.convs, slow.convs)


def test_a_graph_sees_new_lengths(device: Any, near: Any) -> None:
    """As vLLM pads a graph: sequences without tokens at the end, rows of padding after the last one."""
    layer, steps, n = Layer(QWEN3_NEXT, device, taps=5), 3, 4
    slots, mixed = slots_of(layer, n, steps), layer.mixed(n * steps)
    accepted, starts = torch.ones(n, dtype=torch.int32, device=device), starts_of([steps] * n, device)
    out = torch.empty(n * steps, QWEN3_NEXT.values, dtype=BF16, device=device)

    def run() -> None:
        layer.call(mixed, slots, accepted=accepted, starts=starts, out=out)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for counts in ([3, 3, 3, 3], [3, 3, 0, 0], [1, 0, 0, 0], [2, 2, 2, 0], [1, 3, 2, 3]):
        slots.copy_(slots_of(layer, n, steps))
        slots[[count == 0 for count in counts]] = 0
        starts.copy_(starts_of(counts, device))
        accepted.copy_(torch.randint(1, steps + 1, (n,), device=device))
        mixed.copy_(layer.mixed(n * steps))
        out.fill_(float("nan"))
        before, wanted = layer.clone(), layer.expected(mixed, slots, accepted, counts=counts)
        graph.replay()
        check(layer, before, out, wanted, slots, near)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_graph_sees_new_slots(steps: int, device: Any, near: Any) -> None:
    """Slots, accepted tokens and inputs change between replays; two layers follow each other in the graph."""
    layers = [Layer(QWEN3_NEXT, device, taps=steps + 2) for _ in range(2)]
    mixed = [layer.mixed(4 * steps) for layer in layers]
    outs = [torch.empty(4 * steps, QWEN3_NEXT.values, dtype=BF16, device=device) for _ in layers]
    slots = slots_of(layers[0], 4, steps)
    accepted = torch.ones(4, dtype=torch.int32, device=device)

    def run() -> None:
        for layer, x, out in zip(layers, mixed, outs, strict=True):
            layer.call(x, slots, accepted=accepted, out=out)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for turn in range(6):
        slots.copy_(slots_of(layers[0], 4, steps))
        slots[turn % 4] = 0
        accepted.copy_(torch.randint(1, steps + 1, (4,), device=device))
        for layer, x in zip(layers, mixed, strict=True):
            x.copy_(layer.mixed(4 * steps))
        before = [layer.clone() for layer in layers]
        wanted = [layer.expected(x, slots, accepted) for layer, x in zip(layers, mixed, strict=True)]
        graph.replay()
        for layer, old, out, exact in zip(layers, before, outs, wanted, strict=True):
            check(layer, old, out, exact, slots, near)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_infinite_token_is_alone(bad: float, device: Any) -> None:
    layer = Layer(QWEN3_NEXT, device)
    other = layer.clone()
    slots, mixed = slots_of(layer, 5).flatten(), layer.mixed(5)
    good = other.call(mixed, slots)
    spoiled = mixed.clone()
    spoiled[2] = bad
    out = layer.call(spoiled, slots)
    rest = [0, 1, 3, 4]
    assert not bool(out[2].isfinite().any())
    assert torch.equal(out[rest], good[rest])


def test_opcheck(device: Any, check_operator: Any) -> None:
    layer = Layer(SHAPES[4], device, slots=4)
    arguments = (
        layer.mixed(2),
        layer.conv_state,
        layer.conv_weight,
        None,
        layer.A_log,
        layer.dt_bias,
        layer.state,
        layer.norm_weight,
        EPSILON,
        torch.tensor([3, 1], dtype=torch.int32, device=device),
        layer.shape.key_heads,
        layer.shape.value_heads,
        layer.shape.interleaved,
        torch.zeros(2, layer.shape.values, dtype=BF16, device=device),
        None,
        None,
    )
    check_operator(torch.ops.gb10.gdn_decode.default, arguments)


@pytest.fixture(scope="module")
def stock() -> Any:
    """vLLM's kernels of the decode path: the convolution, the recurrent step, that for drafts, the norm."""
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    conv = pytest.importorskip("vllm.model_executor.layers.mamba.ops.causal_conv1d")
    fla = pytest.importorskip("vllm.third_party.flash_linear_attention.ops")
    norm = pytest.importorskip("vllm.model_executor.layers.layernorm")
    return (
        conv.causal_conv1d_update,
        fla.fused_recurrent_gated_delta_rule_packed_decode,
        fla.fused_sigmoid_gating_delta_rule_update,
        norm.RMSNormGated.forward_static,
    )


@pytest.mark.parametrize("state", [BF16, F32], ids=["state-bf16", "state-f32"])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=ids[:2])
@pytest.mark.parametrize(
    ("counts", "steps"),
    [([1], 1), ([1] * 4, 1), ([1] * 16, 1), ([3], 3), ([5] * 4, 5), ([3, 1, 5, 2], 5), ([2, 2], 3)],
    ids=str,
)
def test_against_vllm(
    counts: list[int], steps: int, shape: Gdn, state: Any, device: Any, stock: Any, relative_l2: Any
) -> None:
    """Output and state near vLLM's, the convolution's inputs equal, bit for bit.

    vLLM rounds the convolution's products to bfloat16; that is most of the difference.
    """
    convolve, recur, recur_drafts, norm = stock
    n, tokens, starts = len(counts), sum(counts), starts_of(counts, device)
    layer = Layer(shape, device, state=state, slots=90, taps=2 + steps)
    theirs = layer.clone()
    slots, mixed = slots_of(layer, n, steps), layer.mixed(tokens)
    accepted = torch.randint(1, steps + 1, (n,), dtype=torch.int32, device=device)
    if steps == 1:
        out = layer.call(mixed, slots.flatten(), bias=False)
    else:
        out = layer.call(mixed, slots, bias=False, accepted=accepted, starts=starts)

    qkv, z, b, a = (part.contiguous() for part in split(layer.shape, mixed))
    gates = {"A_log": layer.A_log, "a": a, "b": b, "dt_bias": layer.dt_bias}
    if steps == 1:
        y = convolve(
            qkv,
            theirs.conv_state,
            layer.conv_weight,
            None,
            "silu",
            conv_state_indices=slots[:, 0],
            validate_data=False,
        )
        core = torch.zeros(n, 1, shape.value_heads, shape.value_size, dtype=BF16, device=device)
        recur(
            mixed_qkv=y,
            **gates,
            scale=shape.key_size**-0.5,
            initial_state=theirs.state,
            out=core,
            ssm_state_indices=slots[:, 0].contiguous(),
            use_qk_l2norm_in_kernel=True,
        )
    else:
        y = convolve(
            qkv,
            theirs.conv_state,
            layer.conv_weight,
            None,
            "silu",
            conv_state_indices=slots[:, 0],
            num_accepted_tokens=accepted,
            query_start_loc=starts,
            max_query_len=steps,
            validate_data=False,
        )
        q, k, v = y.split([shape.keys, shape.keys, shape.values], dim=1)
        core, _ = recur_drafts(
            **gates,
            q=q.reshape(1, tokens, shape.key_heads, shape.key_size),
            k=k.reshape(1, tokens, shape.key_heads, shape.key_size),
            v=v.reshape(1, tokens, shape.value_heads, shape.value_size),
            initial_state=theirs.state,
            inplace_final_state=True,
            cu_seqlens=starts.long(),
            ssm_state_indices=slots,
            num_accepted_tokens=accepted,
            use_qk_l2norm_in_kernel=True,
        )
    core = core.view(tokens, shape.value_heads, shape.value_size)
    wanted = norm(core, z.view(core.shape), layer.norm_weight, EPSILON, BF16, activation="silu").flatten(1)
    used = slots.flatten().long()
    assert relative_l2(out, wanted) < 8e-3
    assert relative_l2(layer.state[used], theirs.state[used]) < 5e-3
    assert torch.equal(layer.convs[slots[:, 0].long()], theirs.convs[slots[:, 0].long()])
