"""The proof of a load: what counts as written, what is missing by name, which values are refused."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from gb10.vllm_plugin.load_proof import coverage, values
from gb10.vllm_plugin.load_proof.names import Filled, missing, renamed
from gb10.vllm_plugin.load_proof.writes import Copy, Given, Storage, Writes, place


def region_of(tensor: torch.Tensor) -> coverage.Region:
    found = place(tensor)
    assert found is not None
    return found[1]


def record(writes: Writes, tensor: torch.Tensor) -> Storage:
    found = writes.of(tensor)
    assert found is not None
    return found[0]


def views(base: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """A random view of a tensor: slices, steps, a transposition, one of its rows."""
    view = base
    for dimension in range(base.ndim):
        size = view.shape[dimension]
        first = chance.randrange(size)
        view = view.narrow(dimension, first, chance.randint(1, size - first))
    if chance.random() < 0.3:
        view = view[::2]
    if chance.random() < 0.3:
        view = view.transpose(0, -1)
    return view[0] if chance.random() < 0.2 and view.ndim > 1 else view


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_gaps_are_exact(dtype: torch.dtype) -> None:
    """Against a map of the elements, for random views of random tensors, dense ones and ones with holes."""
    chance = random.Random(11)
    for _ in range(300):
        storage = torch.zeros([chance.randint(1, 7) for _ in range(chance.randint(1, 3))], dtype=dtype)
        whole = views(storage, chance) if chance.random() < 0.3 else storage
        written = torch.zeros_like(storage)
        regions = []
        for _ in range(chance.randint(0, 5)):
            view = views(storage, chance)
            regions.append(region_of(view))
            torch.as_strided(written, view.shape, view.stride(), view.storage_offset()).fill_(1)
        left = coverage.gaps(region_of(whole), regions)
        item, start = storage.element_size(), region_of(whole).start
        unwritten = {
            number * item
            for number in torch.arange(storage.numel())
            .as_strided(whole.shape, whole.stride(), whole.storage_offset())
            .flatten()
            .tolist()
            if not written.flatten()[number]
        }
        found = {start + at for first, last in left for at in range(first, last, item)}
        assert found == unwritten


def test_empty_views_have_no_region() -> None:
    assert place(torch.zeros(0, 3)) is None
    assert coverage.region(4, (2, 0), (1, 1), 4) is None


def recorded(act: Callable[[], object], *tensors: torch.Tensor) -> list[bool]:
    """Whether each tensor was written whole while ``act`` ran."""
    writes = Writes()
    for tensor in tensors:
        writes.watch(tensor)
    with writes:
        act()
    return [not coverage.gaps(region_of(tensor), record(writes, tensor).regions) for tensor in tensors]


W = torch.zeros(4, 6)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.copy_(torch.ones(4, 6)),
        lambda w: w.data.copy_(torch.ones(6)),
        lambda w: w.fill_(1),
        lambda w: w.zero_(),
        lambda w: [w[row].copy_(torch.ones(6)) for row in range(4)],
        lambda w: [w.data.narrow(1, 3 * half, 3).copy_(torch.ones(4, 3)) for half in (0, 1)],
        lambda w: w.view(-1).copy_(torch.ones(24)),
        lambda w: w.view(torch.uint8).copy_(torch.zeros(4, 24, dtype=torch.uint8)),
        lambda w: w.__setitem__(slice(None), 1.0),
        lambda w: torch._foreach_copy_(list(w), [torch.ones(6)] * 4),
        lambda w: torch.add(torch.ones(4, 6), 1, out=w),
        lambda w: w.normal_(),
    ],
)
def test_whole_writes_are_seen(write: Callable[[torch.Tensor], object]) -> None:
    weight = W.clone()
    assert recorded(lambda: write(weight), weight) == [True]


@pytest.mark.parametrize(
    "write",
    [
        lambda w: None,
        lambda w: w[:3].copy_(torch.ones(3, 6)),
        lambda w: w[:, 1:].fill_(1),
        lambda w: w.view(torch.uint8)[:, :-1].copy_(torch.zeros(4, 23, dtype=torch.uint8)),
        lambda w: [w[row].copy_(torch.ones(6)) for row in (0, 1, 3)],
        # These change what is there.
        lambda w: w.mul_(2),
        lambda w: w.add_(1).clamp_(0, 1),
        lambda w: w.clone().copy_(torch.ones(4, 6)),
        lambda w: w + 1,
    ],
)
def test_what_leaves_a_part_is_no_whole_write(write: Callable[[torch.Tensor], object]) -> None:
    weight = W.clone()
    assert recorded(lambda: write(weight), weight) == [False]


def test_one_storage_is_written_by_any_of_its_names() -> None:
    weight = W.clone()
    tied = weight.view(4, 6)
    assert recorded(lambda: tied.copy_(torch.ones(4, 6)), weight, tied) == [True, True]


def test_memory_that_nobody_wrote_is_known() -> None:
    writes = Writes()
    with writes:
        raw, made = torch.empty(3), torch.ones(3)
        filled, moved = torch.empty(3), torch.empty(3)
        filled.fill_(1)
        # Offloading does this with parameters that are not loaded yet.
        moved.copy_(raw)
        replaced = nn.Parameter(torch.ones(3))
        replaced.data = torch.empty(3)
    for tensor in (raw, made, filled, moved, replaced):
        writes.watch(tensor)
    writes.forget_writes()
    assert [record(writes, tensor).raw for tensor in (raw, made, filled, moved, replaced)] == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_what_a_reader_of_files_has_filled_counts() -> None:
    """It takes raw memory and fills it without torch."""
    weight, writes = W.clone(), Writes()
    writes.watch(weight)
    with writes:
        read = torch.empty(4, 6)
        weight.copy_(read)
        assert record(writes, weight).regions == {}
        writes.filled(read)
        weight.copy_(read)
    assert list(record(writes, weight).regions) == [region_of(weight)]


# Four experts of two halves in two layers, as vLLM's w13_weight has them; [4, 4, 2] bytes.
def experts(layer: int, without: Iterable[tuple[int, str]] = ()) -> Filled:
    regions = {
        coverage.Region(
            100 + expert * 8 + half * 4, 4
        ): f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
        for expert in range(4)
        for half, name in enumerate(("gate_proj", "up_proj"))
        if (expert, name) not in set(without)
    }
    return Filled(f"model.layers.{layer}.mlp.experts.w13_weight", 100, 32, 4, regions)


def test_a_missing_expert_is_named_after_its_neighbours() -> None:
    whole, part = experts(0), experts(1, [(2, "gate_proj"), (2, "up_proj")])
    wanted = [f"model.layers.1.mlp.experts.2.{name}.weight" for name in ("gate_proj", "up_proj")]
    assert list(missing(part, (16, 24), [whole, part], ())) == wanted
    # Without another layer another expert tells.
    assert list(missing(part, (16, 24), [part], ())) == wanted
    # A tensor that is there is not called missing, whatever it was loaded into.
    assert list(missing(part, (16, 24), [part], {wanted[0]})) == wanted[1:]


def test_a_missing_layer_is_named_after_another_one() -> None:
    def attention(layer: int, regions: dict[coverage.Region, str | None]) -> Filled:
        return Filled(f"model.layers.{layer}.self_attn.qkv_proj.weight", 0, 12, 1, regions)

    parts = {"q": coverage.Region(0, 8), "k": coverage.Region(8, 2), "v": coverage.Region(10, 2)}
    whole = attention(
        3, {one: f"language_model.layers.3.self_attn.{name}_proj.weight" for name, one in parts.items()}
    )
    part = attention(11, {parts["q"]: "language_model.layers.11.self_attn.q_proj.weight"})
    wanted = [f"language_model.layers.11.self_attn.{name}_proj.weight" for name in "kv"]
    assert list(missing(part, (8, 12), [whole, part], ())) == wanted
    assert list(missing(part, (8, 12), [part], ())) == []


@pytest.mark.parametrize(
    ("parameter", "known", "name"),
    [
        ("model.fc.weight", {"model.norm.weight": "mtp.norm.weight"}, "mtp.fc.weight"),
        # The embedding is the target's; the nearest neighbours tell, not the most.
        (
            "model.layers.0.a.weight",
            {
                "model.layers.0.b.weight": "mtp.layers.0.b.weight",
                "model.norm.weight": "model.norm.weight",
                "model.embed_tokens.weight": "model.embed_tokens.weight",
            },
            "mtp.layers.0.a.weight",
        ),
        (
            "model.layers.0.a.weight",
            {
                "model.visual.x.weight": "visual.x.weight",
                "model.layers.0.b.weight": "model.layers.0.b.weight",
            },
            "model.layers.0.a.weight",
        ),
        (
            "language_model.model.norm.weight",
            {"language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight"},
            "model.language_model.norm.weight",
        ),
        ("norm.weight", {"head.weight": "model.head.weight"}, "model.norm.weight"),
        ("model.norm.weight", {"model.head.weight": "head.weight"}, "norm.weight"),
        # A neighbour of another name says nothing of this one.
        ("model.norm.weight", {"model.qkv_proj.weight": "transformer.q.weight"}, "model.norm.weight"),
        ("model.norm.weight", {}, "model.norm.weight"),
    ],
)
def test_a_parameter_is_called_what_the_checkpoint_calls_it(
    parameter: str, known: dict[str, str], name: str
) -> None:
    assert renamed(parameter, known.items()) == name


# Source, type of the target, whether the target keeps the numbers.
CONVERSIONS: list[tuple[torch.Tensor, torch.dtype, bool]] = [
    (torch.tensor([1, 2]), torch.bfloat16, False),
    (torch.tensor([1, 2], dtype=torch.uint8), torch.float8_e4m3fn, False),
    (torch.tensor([True, False]), torch.float32, False),
    (torch.tensor([1.0, 2.0]), torch.uint8, False),
    (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), torch.uint8, False),
    (torch.tensor([1.0, 2.0]).to(torch.float8_e8m0fnu), torch.uint8, False),
    (torch.tensor([1.0, 0.1]), torch.float8_e4m3fn, False),
    (torch.tensor([1.0, 500.0], dtype=torch.bfloat16), torch.float8_e4m3fn, False),
    (torch.tensor([1.0, 1.125]).to(torch.float8_e4m3fn), torch.float8_e5m2, False),
    (torch.tensor([1, 300]), torch.uint8, False),
    (torch.tensor([1, -1], dtype=torch.int8), torch.int64, True),
    (torch.tensor([1, -1], dtype=torch.int8), torch.uint8, True),
    (torch.tensor([1, 2]), torch.int32, True),
    (torch.tensor([True, False]), torch.uint8, True),
    (torch.tensor([1.0, 0.1]), torch.bfloat16, True),
    (torch.tensor([1.0, 0.1], dtype=torch.bfloat16), torch.float32, True),
    (torch.tensor([1.0, math.nan]), torch.float8_e4m3fn, True),
    (torch.tensor([1.0, 0.1]).to(torch.float8_e4m3fn), torch.float32, True),
    (torch.tensor([1.0, 0.1]).to(torch.float8_e4m3fn), torch.bfloat16, True),
]


@pytest.mark.parametrize(("source", "dtype", "kept"), CONVERSIONS)
def test_copies_that_change_numbers_are_noted(source: torch.Tensor, dtype: torch.dtype, kept: bool) -> None:
    writes = Writes()
    with writes:
        target = torch.empty(2, dtype=dtype)
        writes.given = Given("a", source.dtype, (2,))
        target.copy_(source)
    expected = {} if kept else {"a": Copy(source.dtype, dtype, exact=False, numbers=2)}
    assert record(writes, target).doubtful == expected
    writes.forget_writes()
    assert record(writes, target).doubtful == {}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_integers_taken_for_floats_show_without_values(device: str) -> None:
    """As in a rehearsal, where whether a float fits another one does not show."""
    writes = Writes()
    with writes:
        target, scale, slot = torch.empty(3), torch.empty(3).to(torch.float8_e4m3fn), torch.empty(3, 2)
        for tensor in (target, scale, slot):
            writes.watch(tensor)
        writes.given = Given("a", torch.int64, (3,))
        target.copy_(torch.ones(3, dtype=torch.int64, device=device))
        scale.copy_(torch.ones(3, device=device))
        if device == "cpu":
            # This is another operation of torch there.
            slot[1] = torch.ones((), dtype=torch.int64)
        else:
            slot[1].copy_(torch.ones(2, dtype=torch.int64, device=device))
    assert [list(record(writes, one).doubtful) for one in (target, scale, slot)] == [["a"], [], ["a"]]


@pytest.mark.parametrize(
    ("read", "in_part"),
    [
        (lambda w, t: w.copy_(t), False),
        (lambda w, t: [w[row].copy_(t[row]) for row in range(4)], False),
        (lambda w, t: w.t().copy_(t.transpose(0, 1)), False),
        (lambda w, t: w.view(-1).copy_(t.reshape(-1)), False),
        (lambda w, t: w[:, :3].copy_(t.narrow(1, 0, 3)), True),
        (lambda w, t: [w[row].copy_(t[row]) for row in (0, 1, 3)], True),
        (lambda w, t: w[0].copy_(t.unbind()[2]), True),
        # Nothing is read of it, or it is not known what.
        (lambda w, t: w.fill_(t.shape[0]), False),
        (lambda w, t: w[:, :3].copy_(t.clone()[:, :3]), False),
        (lambda w, t: w.copy_(torch.cat([t[:2], t[:2]])), False),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_that_is_read_in_part_is_known(
    read: Callable[[torch.Tensor, torch.Tensor], object], in_part: bool, device: str
) -> None:
    writes = Writes(reads=True)
    weight, tensor = torch.zeros(4, 6, device=device), torch.ones(4, 6, device=device)
    given = writes.given = Given.of("a", tensor)
    with writes:
        read(weight, tensor)
    assert given.in_part() is in_part


def test_nothing_is_noted_while_no_tensor_is_loaded() -> None:
    """What a model does with its own tensors before and after is its own matter."""
    writes = Writes()
    with writes:
        target = torch.empty(3)
        target.copy_(torch.ones(3, dtype=torch.int64))
        target.copy_(torch.ones(1))
    assert record(writes, target).doubtful == {}


BLOCKS = torch.ones(2, 4).to(torch.float8_e4m3fn)


def with_byte(value: int, at: tuple[int, int] = (1, 2)) -> torch.Tensor:
    tensor = BLOCKS.clone()
    tensor.view(torch.uint8)[at] = value
    return tensor


def poked(value: float, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    tensor = torch.ones(3, 5, dtype=dtype)
    tensor[2, 1] = value
    return tensor


@pytest.mark.parametrize(
    ("leaf", "parameter", "element", "text"),
    [
        ("weight", poked(math.nan), 11, "has a value that is nan"),
        ("weight", poked(math.inf), 11, "has a value that is inf"),
        ("weight", poked(-math.inf, torch.float32), 11, "has a value that is -inf"),
        ("bias", poked(math.nan, torch.float16), 11, "has a value that is nan"),
        ("weight_scale_2", torch.tensor([1.0, 0.0]), 1, "is 0; a scale must be positive"),
        ("w13_weight_scale_2", torch.tensor([[1.0, -2.0]]), 1, "is -2; a scale must be positive"),
        ("weight_global_scale", torch.tensor([0.0]), 0, "is 0; a scale must be positive"),
        ("input_scale", torch.tensor(-1.0), 0, "is -1; a scale must be positive"),
        ("input_global_scale", torch.tensor([math.inf]), 0, "has a value that is inf"),
        ("weight_scale", with_byte(0x7F), 6, "has a block scale that is NaN"),
        ("w2_weight_scale", with_byte(0xFF), 6, "has a block scale that is NaN"),
        ("weight_scale", with_byte(0x81), 6, "has a negative block scale"),
        ("weight", with_byte(0xFF), 6, "has a value that is not finite"),
        ("weight", torch.tensor([1.0, math.inf]).to(torch.float8_e5m2), 1, "has a value that is not finite"),
    ],
)
def test_values_that_cannot_be_computed_with(
    leaf: str, parameter: torch.Tensor, element: int, text: str
) -> None:
    assert values.fault(leaf, parameter) == values.Fault(element, text)


@pytest.mark.parametrize(
    ("leaf", "parameter"),
    [
        ("weight", torch.tensor([[-3.0, 0.0]], dtype=torch.bfloat16)),
        ("weight", torch.arange(256, dtype=torch.uint8)),
        ("weight", with_byte(0x81)),
        ("weight_scale", with_byte(0x00)),
        ("weight_scale", with_byte(0x80)),
        ("weight_scale", with_byte(0x7E)),
        ("weight_scale_2", torch.tensor([1e-9])),
        # AutoRound's scales may be negative.
        ("scales", torch.tensor([-1.0])),
        ("e_score_correction_bias", torch.tensor([-1.0])),
        ("weight", torch.zeros(0)),
        ("weight_scale_2", torch.zeros((), device="meta")),
    ],
)
def test_values_that_are_right(leaf: str, parameter: torch.Tensor) -> None:
    assert values.fault(leaf, parameter) is None


def test_blocks_that_a_scale_of_zero_silences() -> None:
    class Layer:
        weight = torch.zeros(2, 16, dtype=torch.uint8)
        weight_scale = torch.ones(2, 2).to(torch.float8_e4m3fn)

    layer = Layer()
    layer.weight[:, :] = 0x11
    assert values.idle_blocks(layer, "weight_scale") == 0
    layer.weight_scale.view(torch.uint8)[1, 0] = 0
    assert values.idle_blocks(layer, "weight_scale") == 1
    # Zeros of either sign are zeros with any scale.
    layer.weight[1, :8] = 0x08
    assert values.idle_blocks(layer, "weight_scale") == 0


class Model(nn.Module):
    """Two layers with a fused parameter of two halves, a norm, and a head; loads as vLLM's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.register_parameter("both", nn.Parameter(torch.empty(4, 3), requires_grad=False))
        self.norm = nn.Parameter(torch.ones(3), requires_grad=False)
        self.head = nn.Parameter(torch.empty(5, 3), requires_grad=False)
        self.tied = nn.Parameter(torch.empty(5, 3), requires_grad=False)
        self.tied = self.head

    def load_one(self, parameter: nn.Parameter, tensor: torch.Tensor) -> None:
        """As vLLM's loaders do: each gets a parameter and a tensor."""
        parameter.data.copy_(tensor)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set()
        for name, tensor in weights:
            parts = name.split(".")
            if parts[0] == "layers":
                half = {"a": 0, "b": 2}[parts[2]]
                self.get_parameter(f"layers.{parts[1]}.both").data[half : half + 2].copy_(tensor)
                loaded.add(f"layers.{parts[1]}.both")
            elif name == "head.scale":
                # As vLLM's loaders do with a scale of a layer that is not quantised: they find the layer.
                layer: Any = self.layers[0]
                self.load_one(layer, tensor)
            else:
                self.load_one(dict(self.named_parameters())[name], tensor)
                loaded.add(name)
        return loaded


def checkpoint() -> dict[str, torch.Tensor]:
    halves = {f"layers.{layer}.{half}.weight": torch.ones(2, 3) for layer in range(2) for half in "ab"}
    return {**halves, "norm": torch.ones(3), "head": torch.ones(5, 3)}


@pytest.fixture
def judged() -> Iterator[Callable[[dict[str, torch.Tensor]], None]]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from gb10.vllm_plugin.load_proof.proof import LoadProof

    def load(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        assert callable(model.load_weights)
        model.load_weights(iter(tensors.items()))

    def judge(tensors: dict[str, torch.Tensor]) -> None:
        proof = LoadProof()
        model = proof.build(Model)
        proof.judge(model, lambda: load(model, tensors))
        assert "load_weights" not in model.__dict__

    yield judge


def test_a_whole_load_passes(judged: Callable[[dict[str, torch.Tensor]], None]) -> None:
    judged(checkpoint())


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (("layers.1.b.weight",), "layers.1.b.weight, which"),
        (("layers.0.a.weight", "layers.0.b.weight"), "layers.0.a.weight and 1 more, which"),
        (("norm",), "norm, which"),
        (("head",), "head, which"),
        (("layers.0.a.weight", "layers.1.a.weight"), "part of layers.0.both and 1 more, which"),
    ],
)
def test_what_is_missing_is_named(
    judged: Callable[[dict[str, torch.Tensor]], None], gone: tuple[str, ...], named: str
) -> None:
    from gb10.vllm_plugin.refusal import PREFIX, Refused

    tensors = checkpoint()
    for name in gone:
        del tensors[name]
    with pytest.raises(Refused, match=f"{PREFIX}the checkpoint has no {named}") as caught:
        judged(tensors)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_comes_twice_is_refused(judged: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """The second one would stand, whatever files it comes from: .bin, or by another loader."""
    from gb10.vllm_plugin.refusal import Refused

    class Twice(dict[str, torch.Tensor]):
        def items(self) -> Any:
            yield from super().items()
            yield "head", torch.zeros(5, 3)

    with pytest.raises(Refused, match="the checkpoint has head twice in what vLLM reads; take the file"):
        judged(Twice(checkpoint()))


def test_a_bad_value_is_named_after_its_tensor(judged: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from gb10.vllm_plugin.refusal import Refused

    tensors = checkpoint()
    tensors["layers.1.b.weight"][1, 2] = math.nan
    with pytest.raises(Refused, match=r"layers.1.b.weight has a value that is nan; make or fetch"):
        judged(tensors)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"norm": torch.ones(3, dtype=torch.int64)},
            "the checkpoint does not fit the model: norm is of type I64, and the model reads it as F32, "
            "which would change its numbers; make",
        ),
        (
            {"head": torch.ones(5, 3, dtype=torch.bool), "norm": torch.ones(3, dtype=torch.uint8)},
            r"norm is of type U8, .*numbers \(and 1 more tensors\); make",
        ),
        (
            {"layers.1.b.weight": torch.ones(1, 3)},
            r"layers.1.b.weight has fewer numbers than layers.1.both \(F32, \[4, 3\]\), where it belongs",
        ),
        (
            {"layers.1.b.weight": torch.ones(3, 2)},
            r"vLLM cannot load layers.1.b.weight \(F32, \[3, 2\]\) \(The size of tensor",
        ),
        ({"bias": torch.ones(3)}, r"cannot load bias \(F32, \[3\]\) \(its Model has no 'bias'\); make"),
        (
            {"head.scale": torch.ones(3)},
            r"vLLM cannot load head.scale \(F32, \[3\]\) \('Module' object has no attribute 'data'\); make",
        ),
        ({"norm": torch.ones(3, 1)}, r"vLLM cannot load norm \(F32, \[3, 1\]\) into norm \(F32, \[3\]\)"),
    ],
)
def test_what_does_not_fit_is_refused(
    judged: Callable[[dict[str, torch.Tensor]], None], changed: dict[str, torch.Tensor], said: str
) -> None:
    from gb10.vllm_plugin.refusal import Refused

    with pytest.raises(Refused, match=said) as caught:
        judged(checkpoint() | changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: out of memory"), MemoryError(), OSError("shape of things")]
)
def test_errors_that_are_not_the_checkpoints_pass(error: Exception) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from gb10.vllm_plugin.load_proof.proof import LoadProof

    proof = LoadProof()
    proof.writes.given = Given("a", torch.float32, (3,))
    assert proof.misfit(nn.Module(), error) is None
    proof.writes.given = None
    assert proof.misfit(nn.Module(), RuntimeError("size of tensor a")) is None


@pytest.mark.parametrize(
    ("module", "kind", "known"),
    [
        ("vllm.model_executor.kernels.linear", "ValueError", True),
        ("vllm.model_executor.layers.fused_moe.oracle.int8", "NotImplementedError", True),
        ("vllm.model_executor.layers.linear", "RuntimeError", False),
        ("vllm.model_executor.models.llama", "ValueError", False),
        ("torch._ops", "NotImplementedError", False),
    ],
)
def test_layers_that_vllm_cannot_build_here_are_told_by_who_says_so(
    module: str, kind: str, known: bool
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from gb10.vllm_plugin.load_proof.proof import unbuilt_message

    there: dict[str, Any] = {"__name__": module}
    exec(f"def choose():\n    raise {kind}('No kernel. Reasons:\\n  ' + 'words ' * 100)", there)
    try:
        there["choose"]()
    except Exception as error:
        said = unbuilt_message(error)
    if not known:
        assert said is None
        return
    assert said is not None
    assert said.startswith("vLLM cannot serve this checkpoint on this machine: No kernel. Reasons: words")
    assert "\n" not in said
    assert len(said) < 500


def _experts(raw: bool, rounded: bool, act_and_mul: bool = True) -> tuple[nn.Module, torch.Tensor]:
    """A stand-in for vLLM's routed experts: three, w13 of [3, 8, 4] float32."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from types import SimpleNamespace

    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    class Experts(RoutedExperts):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            make = torch.empty if raw else torch.zeros
            self.w13_weight = nn.Parameter(make(3, 8, 4), requires_grad=False)
            self.moe_config = SimpleNamespace(
                hidden_dim=4,
                hidden_dim_unpadded=3 if rounded else 4,
                intermediate_size_per_partition=4,
                intermediate_size_per_partition_unpadded=4,
                is_act_and_mul=act_and_mul,
            )

    from gb10.vllm_plugin.load_proof.proof import LoadProof

    proof = LoadProof()
    model = proof.build(Experts)
    model.__dict__["proof"] = proof
    return model, model.get_parameter("w13_weight").data


@pytest.mark.parametrize(
    ("raw", "rounded", "columns", "rows", "experts", "passes"),
    [
        # Whole; then three of four columns, as where a hidden size is rounded up.
        (True, False, 4, (0, 8), (0, 1, 2), True),
        (True, True, 3, (0, 8), (0, 1, 2), True),
        (False, False, 3, (0, 8), (0, 1, 2), True),
        # Nobody said that these sizes are rounded, and nobody wrote there.
        (True, False, 3, (0, 8), (0, 1, 2), False),
        # An expert is missing, or the up projections of all.
        (False, True, 3, (0, 8), (0, 2), False),
        (False, True, 3, (0, 4), (0, 1, 2), False),
        (True, True, 4, (0, 4), (0, 1, 2), False),
    ],
)
def test_padding_is_what_all_experts_lack(
    raw: bool, rounded: bool, columns: int, rows: tuple[int, int], experts: tuple[int, ...], passes: bool
) -> None:
    model, weight = _experts(raw, rounded)

    def load() -> None:
        for expert in experts:
            for first in range(*rows, 4):
                weight[expert, first : first + 4, :columns].copy_(torch.ones(4, columns))

    found = model.__dict__["proof"].load(model, load).find()
    assert (found == []) is passes, found
