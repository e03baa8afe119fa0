"""The site of docs/: what becomes of a small checkout, and which planted faults end its build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: PYTHONPATH of the profile docs")

DOCS = Path(__file__).parents[3] / "nix" / "docs"

FILES = {
    "README.md": "# Small\n\nSee [a](docs/a.md#first), [the code](python/code.py) and [all](docs/b.md).\n",
    "docs/a.md": "# A\n\n## First\n\nWords:\n- one\n- two\n\nand\n| x | y |\n| --- | --- |\n| 1 | 2 |\n",
    "docs/b.md": "# B\n\n[c](../python/code.py), [home](../README.md#small)\n\n```\n- not\n- a list\n```\n",
    "docs/plot.py": "print()\n",
    "python/code.py": "print()\n",
}


def _checkout(folder: Path, more: dict[str, str], *, repository: str = "") -> Path:
    """A small checkout with this one's hook and settings, but for the navigation."""
    for name, text in (FILES | more).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "nix/docs").mkdir(parents=True)
    shutil.copy(DOCS / "hook.py", folder / "nix/docs")
    settings, _, _ = (DOCS / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    nav = "\nnav: [index.md, a.md, b.md]\n" + (f"repo_url: {repository}\n" if repository else "")
    (folder / "nix/docs/mkdocs.yml").write_text(settings + nav, encoding="utf-8")
    return folder


def _build(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", "nix/docs/mkdocs.yml"]
    return subprocess.run(
        [*command, "-d", str(checkout / "site")],
        cwd=checkout,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def _page(checkout: Path, name: str) -> str:
    return (checkout / "site" / name).read_text(encoding="utf-8")


def test_a_checkout_becomes_a_site(tmp_path: Path) -> None:
    checkout = _checkout(tmp_path, {})
    done = _build(checkout)
    assert done.returncode == 0, done.stdout
    home, a, b = (_page(checkout, name) for name in ("index.html", "a.html", "b.html"))
    assert 'href="a.html#first"' in home and 'href="b.html"' in home
    # Without the repository's address a link to a file of it is its path.
    assert "<span>the code (<code>python/code.py</code>)</span>" in home
    assert "<span>c (<code>python/code.py</code>)</span>" in b
    assert 'href="index.html#small"' in b
    # As GitHub reads them: no blank line before.
    assert "<li>one</li>" in a and "<td>1</td>" in a
    assert "- not" in b and "<li>not</li>" not in b
    assert not (checkout / "site" / "plot.py").exists()
    assert "fonts.g" not in home and "unpkg" not in home


def test_files_of_the_repository_are_links_where_it_has_an_address(tmp_path: Path) -> None:
    checkout = _checkout(tmp_path, {}, repository="https://git.example/gb10")
    assert _build(checkout).returncode == 0
    for name in ("index.html", "b.html"):
        assert 'href="https://git.example/gb10/blob/HEAD/python/code.py"' in _page(checkout, name)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("docs/a.md", "[x](gone.md)", "gone.md"),
        ("docs/a.md", "[x](b.md#gone)", "b.md#gone"),
        ("docs/a.md", "[x](#gone)", "#gone"),
        ("docs/a.md", "![x](gone.svg)", "gone.svg"),
        ("docs/a.md", "[x](../python/gone.py)", "docs/a.md links to python/gone.py"),
        ("docs/a.md", "[x](../../code.py)", "docs/a.md links to ../code.py"),
        ("docs/c.md", "# C", "c.md"),
        ("README.md", "[x](docs/gone.md)", "gone.md"),
        ("README.md", "[x](docs/a.md#gone)", "a.md#gone"),
        ("README.md", "[x](python/gone.py)", "README.md links to python/gone.py"),
    ],
)
def test_a_planted_fault_ends_the_build(tmp_path: Path, file: str, text: str, says: str) -> None:
    checkout = _checkout(tmp_path, {file: f"{FILES.get(file, '')}\n{text}\n"})
    done = _build(checkout)
    assert done.returncode == 1
    assert says in done.stdout
    assert "Aborted with 1 warnings in strict mode" in done.stdout


def test_a_page_of_the_navigation_that_is_not_there_ends_the_build(tmp_path: Path) -> None:
    checkout = _checkout(tmp_path, {})
    (checkout / "docs/b.md").unlink()
    done = _build(checkout)
    assert done.returncode == 1
    assert "b.md" in done.stdout
