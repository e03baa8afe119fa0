"""profiles.toml: what is read, and what is refused with which words."""

import pytest
from gb10_lock.errors import LockError
from gb10_lock.profiles import canonical, parse, requirement_name
from lock_fakes import PROFILES


def test_everything_is_read() -> None:
    inputs = parse(PROFILES)
    cpu, test = inputs.profiles["cpu"], inputs.profiles["test"]
    assert (cpu.base, test.base) == (None, "cpu")
    assert cpu.requirements == ("engine==1.0",)
    assert cpu.exclusions == ("heavy-thing",)
    assert cpu.dependencies
    without = PROFILES.replace("[profiles.cpu]", "[profiles.cpu]\ndependencies = false")
    assert not parse(without).profiles["cpu"].dependencies
    fixed = inputs.fixed["torch-cpu"]
    assert (fixed.name, fixed.version, fixed.index) == ("torch", "2.0+cpu", "elsewhere")
    assert fixed.wheels[("x86_64-linux", "3.11")].size is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version = 1", "version = 2", "`version` must be 1"),
        ("version = 1", "version = [", "not valid TOML"),
        ('glibc = "2.36"', 'glibc = "new"', "`glibc` is 'new'"),
        ('pythons = ["3.11"]', 'pythons = ["311"]', "'311' does not look like 3.12"),
        ('pythons = ["3.11"]', "pythons = []", "`pythons` must not be empty"),
        ('requirements = ["engine==1.0"]', "requirements = []", "`requirements` must not be empty"),
        ('requirements = ["engine==1.0"]', 'requirements = ["==1"]', "does not start with a project name"),
        ('requirements = ["engine==1.0"]', 'requirements = "engine"', "must be a list of texts"),
        ('reason = "not needed"', "", "`reason` must be a text"),
        ('reason = "not on the index"', 'reason = " "', "`reason` must be a text"),
        ('fixed = ["torch-cpu"]', 'fixed = ["jax"]', "there is no [fixed.jax]"),
        ('fixed = ["torch-cpu"]', 'fixd = ["torch-cpu"]', "unknown key `fixd`"),
        ('base = "cpu"', 'dependencies = "no"', "`dependencies` must be true or false"),
        ('base = "cpu"', 'base = "test"', "must be a profile without a base"),
        ('base = "cpu"', 'base = "gpu"', "base 'gpu' must be a profile"),
        ("a" * 64, "A" * 64, "`sha256` is"),
        ('system = "x86_64-linux"\n', 'system = "riscv64-linux"\n', "no wheel for x86_64-linux, Python 3.11"),
        ('x86_64-linux = "x86_64"', 'aarch64-linux = "aarch64"', "not listed under [systems]"),
    ],
)
def test_refusals_name_the_place(old: str, new: str, words: str) -> None:
    assert old in PROFILES
    with pytest.raises(LockError) as error:
        parse(PROFILES.replace(old, new, 1))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_must_cover_what_stands_on_it() -> None:
    head, tail = PROFILES.split("[profiles.test]")
    with pytest.raises(LockError, match="does not cover"):
        parse(f"{head}[profiles.test]{tail.replace('3.11', '3.12', 1)}")


def test_allowed_duplicates_need_a_known_profile() -> None:
    text = '\n[[allowed-duplicates]]\nprofiles = ["gpu"]\npath = "site/a"\n'
    text += 'packages = ["a", "b"]\nreason = "same"\n'
    with pytest.raises(LockError, match="there is no profile 'gpu'"):
        parse(PROFILES + text)
    assert parse(PROFILES + text.replace("gpu", "cpu")).duplicates[0].packages == ("a", "b")


@pytest.mark.parametrize(
    ("requirement", "name"),
    [("torch==2", "torch"), ("A_b.C[x]>=1; python_version > '3'", "a-b-c"), (" x ", "x")],
)
def test_requirement_names(requirement: str, name: str) -> None:
    assert requirement_name(requirement) == name


def test_canonical_names() -> None:
    assert canonical("Foo__Bar.-baz") == "foo-bar-baz"
