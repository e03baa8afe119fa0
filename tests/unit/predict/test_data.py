"""The published figures and architectures that are shipped, against sums of others."""

import pytest

from gb10.predict.architecture import Architecture, architectures, spread
from gb10.predict.measured import DEPTH, DRAFT, EXCLUDED, FIT, Row, rows
from gb10.predict.routing import distinct, independent
from gb10.predict.step import READS, sizes_of

ROWS = {row.id: row for row in rows()}

# GB a decoded token of each row as summed by hand for the notes that the rows come from, with FP32 states.
BYTES = {
    "4b-grout": 8.05,
    "32b-grout": 63.97,
    "vlto-nvfp4": 19.11,
    "8b-fp8": 8.19,
    "8b-w4a16": 5.15,
    "llama-70b": 40.6,
    "120b-llama.cpp": 3.56,
    "20b-llama.cpp": 2.57,
    "coder-30b": 2.18,
    "next-1k": 4.33,
    "coder-next-fp8-a": 4.08,
    "coder-next-nvfp4": 2.68,
    "coder-next-gdn16": 4.42,
    "35b-bf16-backbone-a": 4.57,
    "35b-fp8-a": 3.60,
    "35b-w4a4": 2.55,
    "35b-tensorfold": 1.79,
    "flash-next-bf16": 10.23,
    "flash-next-fp8": 7.56,
    "flash-next-fp8-head": 6.92,
}


@pytest.mark.parametrize(("name", "expected"), BYTES.items())
def test_bytes_a_token(name: str, expected: float) -> None:
    row = ROWS[name]
    found = sum(row.work()[kind] for kind in READS) / 1e9
    # Here the state of Qwen3-Next is BF16, as vLLM keeps it.
    missing = row.architecture.state_bytes / 1e9 if row.architecture.state_bits == 16 else 0.0
    assert found + missing == pytest.approx(expected, rel=0.012)


def test_every_row_has_a_source_and_what_is_left_out_a_reason() -> None:
    assert len(ROWS) == len(rows())
    for row in rows():
        assert row.model in architectures()
        assert len(row.source) > 10
        assert row.use in (FIT, DEPTH, DRAFT, EXCLUDED)
        assert bool(row.reason) == (row.use == EXCLUDED)
        assert row.confidence in ("A", "B", "C")
        assert spread(row.formats)
        if row.range:
            assert row.range[0] <= row.tokens_per_second <= row.range[1]


def test_depth_rows_are_of_llama_cpp_and_not_fitted() -> None:
    found = [row for row in rows() if row.use == DEPTH]
    assert len(found) == 7
    assert {row.engine for row in found} == {"llama.cpp"}
    assert all(row.context == 0 for row in rows() if row.use == FIT and row.engine == "llama.cpp")


def layers(model: Architecture) -> int:
    return model.attention_layers + model.gdn_layers


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen3-8b", 7.57), ("qwen3-32b", 31.98), ("llama-3.3-70b", 69.5), ("qwen3-next-80b-a3b", 79.4)],
)
def test_weights_add_up_to_the_model(name: str, billions: float) -> None:
    """All weights but the embedding, by the models' published numbers of parameters."""
    model = architectures()[name]
    assert layers(model) == model.layers
    experts = model.layers * model.experts * model.expert_values() if model.experts else 0
    total = sum(values for _, values in model.matrices().values()) + experts
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_kv_cache_grows_by_layers_that_read_all_of_it() -> None:
    model = architectures()["gpt-oss-120b"]
    sizes = sizes_of(model, model.shipped)
    token = 2 * 8 * 64 * 2
    assert sizes.kv_bytes(100) == 36 * token * 100
    assert sizes.kv_bytes(8192) == 18 * token * (8192 + 128)
    sparse = architectures()["qwen3.8-flash-next"]
    sizes = sizes_of(sparse, sparse.shipped)
    assert sizes.kv_bytes(2048) == sizes.kv_bytes(65536)


def test_padded_experts() -> None:
    """vLLM pads MXFP4 experts of 2880 x 2880 to 3072 x 2944."""
    model = architectures()["gpt-oss-120b"]
    plain, padded = sizes_of(model, model.shipped), sizes_of(model, model.shipped, padded=True)
    assert padded.expert / plain.expert == pytest.approx(3072 * 2944 / 2880**2)


@pytest.mark.parametrize(("tokens", "expected"), [(1, 10), (4, 26.6), (8, 47.3), (16, 82.5)])
def test_distinct_experts_are_the_counted_ones(tokens: int, expected: float) -> None:
    assert distinct(512, 10, tokens) == pytest.approx(expected)


def test_distinct_experts_between_and_beyond() -> None:
    counts = [distinct(512, 10, tokens) for tokens in range(1, 40)]
    assert counts == sorted(counts)
    assert all(count <= independent(512, 10, tokens) for tokens, count in enumerate(counts, 1))
    assert 10 < distinct(512, 10, 2) < 20
    assert distinct(0, 0, 4) == 0
    assert distinct(4, 4, 8) == 4


@pytest.mark.parametrize("formats", [{"dense": "int3"}, {"nose": "bf16"}])
def test_unknown_formats_are_refused(formats: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is called"):
        spread(formats)


def test_a_row_of_an_unknown_model_is_refused() -> None:
    row = ROWS["8b-fp8"]
    with pytest.raises(KeyError):
        Row(**{**row.__dict__, "model": "nonsense"}).work()
