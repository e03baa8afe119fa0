"""Pins files, their digest, and the call of uv."""

from dataclasses import replace

import pytest
from gb10_lock import environment
from gb10_lock.environment import Environment, Pin
from gb10_lock.errors import LockError
from gb10_lock.profiles import parse
from lock_fakes import PROFILES, FakeTools


def cpu() -> Environment:
    return environment.environments(parse(PROFILES))[0]


def test_bases_come_first_and_labels_are_stable() -> None:
    labels = [env.label for env in environment.environments(parse(PROFILES))]
    assert labels == ["cpu-x86_64-linux-cp311", "test-x86_64-linux-cp311"]


def test_pins_survive_writing_and_reading() -> None:
    pins = [Pin("b", "2.0+local", ("profile:cpu",)), Pin("a-c", "1!1.0", ("b", "d"))]
    text = environment.format_pins(pins, "f" * 64)
    assert environment.parse_pins(text, "x") == sorted(pins, key=lambda pin: pin.name)
    assert environment.stamp(text) == "f" * 64
    assert environment.stamp("a==1\n") is None


def test_uv_lines_are_read() -> None:
    text = "A_B==1.0 ; python_version < '4'   # via c, -r cpu.in\n\n# note\nd==2\n"
    assert environment.parse_pins(text, "x") == [Pin("a-b", "1.0", ("-r cpu.in", "c")), Pin("d", "2", ())]


@pytest.mark.parametrize("text", ["a>=1\n", "a @ https://host/a.whl\n", "-e .\n", "a==1\nA==2\n"])
def test_other_lines_are_refused(text: str) -> None:
    with pytest.raises(LockError, match="where"):
        environment.parse_pins(text, "where")


def test_digest_follows_the_inputs_and_not_their_order() -> None:
    env = cpu()
    two = replace(env, profile=replace(env.profile, requirements=("b", "a")))
    swapped = replace(env, profile=replace(env.profile, requirements=("a", "b")))
    assert environment.digest(two, []) == environment.digest(swapped, [])
    variants = [
        env,
        two,
        replace(env, python="3.12"),
        replace(env, fixed={}),
        replace(env, profile=replace(env.profile, constraints=("x==1",))),
        replace(env, profile=replace(env.profile, overrides=("x==1",))),
        replace(env, profile=replace(env.profile, exclusions=("x==1",))),
        replace(env, profile=replace(env.profile, glibc="2.39")),
        replace(env, profile=replace(env.profile, dependencies=False)),
    ]
    digests = {environment.digest(item, []) for item in variants}
    digests.add(environment.digest(env, [Pin("a", "1", ())]))
    assert len(digests) == len(variants) + 1


def test_resolve_tells_uv_everything(tools: FakeTools) -> None:
    pins = environment.resolve(cpu(), [], "engine==1.0\n")
    assert pins == [Pin("engine", "1.0", ("profile:cpu",)), Pin("sums", "1.2", ("engine", "torch"))]
    log = tools.uv_log()
    assert log["old"] == "engine==1.0\n"
    assert log["cpu.in"] == "engine==1.0\n"
    assert log["torch.in"] == "sums>=1\n"
    assert log["overrides.txt"] == "heavy-thing; python_version < '3'\ntorch; python_version < '3'\n"
    assert "x86_64-manylinux_2_36" in log["args"]


def test_a_profile_may_leave_out_what_its_projects_depend_on(tools: FakeTools) -> None:
    environment.resolve(cpu(), [], None)
    assert "--no-deps" not in tools.uv_log()["args"]
    env = replace(cpu(), profile=replace(cpu().profile, dependencies=False))
    environment.resolve(env, [], None)
    assert "--no-deps" in tools.uv_log()["args"]


def test_what_the_base_has_is_left_out(tools: FakeTools) -> None:
    env = environment.environments(parse(PROFILES))[1]
    pins = environment.resolve(env, [Pin("sums", "1.2", ())], None)
    assert [pin.name for pin in pins] == ["checker"]
    assert tools.uv_log("test")["constraints.txt"] == "sums==1.2\n"
    assert tools.uv_log("test")["old"] is None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["engine==1.0", "heavy-thing==1"], "heavy-thing is excluded"),
        (["sums==1.2"], "lacks 'engine==1.0'"),
    ],
)
def test_a_wrong_resolution_is_refused(tools: FakeTools, lines: list[str], words: str) -> None:
    tools.table["uv"] = {"cpu.in": lines}
    tools.save()
    with pytest.raises(LockError, match=words):
        environment.resolve(cpu(), [], None)


def test_uv_complaint_becomes_one_line(tools: FakeTools) -> None:
    tools.table["uv_error"] = (
        "warning: x\nerror: No solution found\n  cause: engine has no usable wheels\nhint: y"
    )
    tools.save()
    with pytest.raises(LockError) as error:
        environment.resolve(cpu(), [], None)
    where = "resolving cpu-x86_64-linux-cp311: uv failed: "
    assert str(error.value) == f"{where}error: No solution found cause: engine has no usable wheels"


def test_uv_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LockError, match="`uv` is not on PATH"):
        environment.resolve(cpu(), [], None)
