"""The guard names everything that moved in vLLM, in one line."""

import dataclasses
import importlib.util

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm

from gb10.vllm_plugin.compat import WRITTEN_FOR, IncompatibleVllmError, Need, check
from gb10.vllm_plugin.patches import PATCHES

# vLLM's executor for Ray cannot be imported without.
ROOMS = {patch.room for patch in PATCHES} - (set() if importlib.util.find_spec("ray") else {"ray"})
NEEDS = [need for patch in PATCHES if patch.room in ROOMS for need in patch.needs]


def test_installed_vllm_has_what_the_plugin_needs() -> None:
    assert NEEDS
    check(vllm.__version__, NEEDS)


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.name)
def test_each_need_is_looked_at(need: Need) -> None:
    """The same need under another name, or with one more parameter, is reported."""
    moved = dataclasses.replace(need, attribute=f"{need.attribute}_moved")
    with pytest.raises(IncompatibleVllmError, match="_moved is gone"):
        check("9.9.9", (moved,))
    if need.parameters is not None:
        changed = dataclasses.replace(need, parameters=f"{need.parameters}, surprise")
        with pytest.raises(IncompatibleVllmError, match="surprise"):
            check("9.9.9", (changed,))


def test_message_names_versions_and_all_problems() -> None:
    needs = (
        Need("vllm.no_such_module", "anything"),
        Need("vllm.envs", "no_such_attribute"),
        Need("vllm.envs", "enable_envs_cache", "surprise"),
        Need("vllm.envs", "environment_variables", ""),
    )
    with pytest.raises(IncompatibleVllmError) as caught:
        check("9.9.9", needs)
    message = str(caught.value)
    assert WRITTEN_FOR in message
    assert "9.9.9" in message
    assert "cannot import vllm.no_such_module" in message
    assert "vllm.envs.no_such_attribute is gone" in message
    assert "vllm.envs.enable_envs_cache takes (), expected (surprise)" in message
    assert "vllm.envs.environment_variables is no longer a function" in message
    assert "\n" not in message
