"""The mode is read from one environment variable."""

import pytest

from gb10.errors import UserError
from gb10.vllm_plugin.cpu.mode import ENV_NAME, Mode


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, Mode.DEQUANT),
        ({ENV_NAME: ""}, Mode.DEQUANT),
        ({ENV_NAME: "dequant"}, Mode.DEQUANT),
        ({ENV_NAME: "packed"}, Mode.PACKED),
        ({ENV_NAME: "emulate"}, Mode.EMULATE),
    ],
)
def test_reads_mode(environment: dict[str, str], mode: Mode) -> None:
    assert Mode.from_env(environment) is mode


@pytest.mark.parametrize("word", ["Packed", "w4a4", " dequant"])
def test_refuses_other_words(word: str) -> None:
    with pytest.raises(UserError) as caught:
        Mode.from_env({ENV_NAME: word})
    message = str(caught.value)
    assert repr(word) in message
    assert "dequant, packed, emulate" in message
    assert "\n" not in message
