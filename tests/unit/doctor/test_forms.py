"""Dataclasses as JSON and back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gb10.doctor import forms
from gb10.doctor.facts import Cpu, Driver, Gpu, Network, Rdma

# What no machine has is refused.
st.register_type_strategy(int, st.integers(-(1 << 63) + 1, (1 << 63) - 1))
st.register_type_strategy(float, st.floats(-9e18, 9e18))

GPU = {"name": "NVIDIA GB10", "capability": [12, 1], "memory": 1, "unified": True}


@given(st.from_type(Driver) | st.from_type(Gpu) | st.from_type(Network) | st.from_type(Cpu))
def test_what_was_written_is_read_again(value: Any) -> None:
    text = forms.dumps(value)
    assert forms.dumps(forms.loads(type(value), text)) == text


def test_defaults_and_nested_ones() -> None:
    found = forms.read(Network, {"rdma": [{"name": "rocep1s0f0", "active": True}], "nccl": {"A": "b"}})
    assert found == Network(rdma=(Rdma(name="rocep1s0f0", active=True),), nccl={"A": "b"})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": None}, "name is not text"),
        ({"memory": True}, "memory is not a whole number"),
        ({"memory": 1.0}, "memory is not a whole number"),
        ({"unified": 1}, "unified is not true or false"),
        ({"capability": [12]}, "capability is not a list of 2"),
        ({"capability": [12, "1"]}, "capability.1 is not a whole number"),
        ({"capability": 12}, "capability is not a list"),
        ({"held": [1]}, "held.0 is not text"),
        ({"power": "4.6"}, "power is not a number"),
        ({"power": float("inf")}, "power is not a number"),
        ({"memory": 1 << 63}, "memory is not a whole number"),
        ({"colour": "gold"}, "colour is no field that is known"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        forms.read(Gpu, GPU | changed)


def test_whole_numbers_are_numbers_and_null_is_nothing() -> None:
    assert forms.read(Gpu, GPU | {"power": 5, "free": None}).power == 5


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "7", "[]", json.dumps({"name": "x"})])
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        forms.loads(Gpu, text)
