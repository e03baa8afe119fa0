"""Where the libraries are looked for, and the one line when they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.kernels.library import KERNELS, SPARSE24, Library, library_path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``kernels/lib`` and ``sparse24`` with a library each; no variable is set."""
    for name in ("GB10_KERNELS", "GB10_KERNELS_SPARSE24"):
        monkeypatch.delenv(name, raising=False)
    for place in ("kernels/lib/libgb10_kernels.so", "sparse24/libgb10_sparse24.so"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    return tmp_path


def test_a_folder_or_the_file(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folders / "kernels/lib/libgb10_kernels.so"
    for named in (folders / "kernels", folders / "kernels/lib", file):
        monkeypatch.setenv("GB10_KERNELS", str(named))
        assert library_path() == file


def test_sparse24_has_its_own_variable_or_lies_beside(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GB10_KERNELS", str(folders / "kernels"))
    monkeypatch.setenv("GB10_KERNELS_SPARSE24", str(folders / "sparse24"))
    assert library_path(SPARSE24) == folders / "sparse24/libgb10_sparse24.so"
    monkeypatch.delenv("GB10_KERNELS_SPARSE24")
    beside = folders / "kernels/lib/libgb10_sparse24.so"
    beside.touch()
    for named in (folders / "kernels", folders / "kernels/lib/libgb10_kernels.so"):
        monkeypatch.setenv("GB10_KERNELS", str(named))
        assert library_path(SPARSE24) == beside


def test_one_line_says_what_to_do(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(library: Library) -> str:
        with pytest.raises(UserError) as caught:
            library_path(library)
        return str(caught.value)

    to_do = "set GB10_KERNELS_SPARSE24 to the folder that `nix build .#kernels-sparse24` gave"
    assert said(KERNELS).startswith("GB10_KERNELS is not set; set GB10_KERNELS to the folder that `nix build")
    assert said(SPARSE24) == f"GB10_KERNELS_SPARSE24 is not set; {to_do}"
    monkeypatch.setenv("GB10_KERNELS", str(folders / "kernels"))
    missing = f"is {folders}/kernels, where there is no libgb10_sparse24.so; {to_do}"
    assert said(SPARSE24) == f"GB10_KERNELS {missing}"
