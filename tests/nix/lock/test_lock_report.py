"""pip's report, platform tags and sizes."""

import json
from pathlib import Path

import pytest
from gb10_lock import report, sizes
from gb10_lock.environment import Pin
from gb10_lock.errors import LockError
from gb10_lock.report import Found

PINS = [Pin("foo-bar", "1.0+x", ())]


def text(**changes: object) -> str:
    item: dict[str, object] = {
        "url": "https://host/some/where/foo_bar-1.0%2Bx-py3-none-any.whl#sha256=1",
        "archive_info": {"hashes": {"sha256": "b" * 64}},
    }
    metadata = {"name": "Foo.Bar", "version": "1.0+x"}
    return json.dumps({"install": [{"download_info": item | changes, "metadata": metadata}]})


def test_a_wheel_is_read() -> None:
    (found,) = report.parse_report(text(), PINS, "env")
    assert (found.name, found.version) == ("foo-bar", "1.0+x")
    assert (found.file, found.sha256) == ("foo_bar-1.0+x-py3-none-any.whl", "b" * 64)


@pytest.mark.parametrize(
    ("report_text", "pins", "words"),
    [
        (text(url="https://host/foo-1.0.tar.gz"), PINS, "has no wheel, only foo-1.0.tar.gz"),
        (text(archive_info={}), PINS, "gives no SHA-256 for foo_bar"),
        (text(), [*PINS, Pin("other", "1", ())], r"differs from the pins in \['other'\]"),
        (text(), [], r"differs from the pins in \['foo-bar'\]"),
        ("{}", PINS, "cannot read pip's report"),
        ("nonsense", PINS, "cannot read pip's report"),
        ('{"install": [{}]}', PINS, "cannot read pip's report"),
    ],
)
def test_refusals(report_text: str, pins: list[Pin], words: str) -> None:
    with pytest.raises(LockError, match=words):
        report.parse_report(report_text, pins, "env")


def test_platform_tags_newest_first() -> None:
    tags = report.platforms("x86_64", "2.39")
    assert tags[0] == "manylinux_2_39_x86_64"
    assert tags[-5:] == [
        "manylinux_2_5_x86_64",
        "manylinux2014_x86_64",
        "manylinux2010_x86_64",
        "manylinux1_x86_64",
        "linux_x86_64",
    ]
    assert len(tags) == 35 + 4
    assert "manylinux_2_37_x86_64" not in report.platforms("x86_64", "2.36")
    assert "manylinux1_aarch64" not in report.platforms("aarch64", "2.36")


def found(path: Path) -> Found:
    return Found("a", "1", path.name, "c" * 64, path.as_uri())


def test_sizes_of_a_folder_index(tmp_path: Path) -> None:
    path = tmp_path / "a+b-1-py3-none-any.whl"
    path.write_bytes(b"12345")
    assert sizes.sizes([found(path)], {"d" * 64: 7}) == {"c" * 64: 5, "d" * 64: 7}


def test_a_known_size_is_not_asked_for(tmp_path: Path) -> None:
    assert sizes.sizes([found(tmp_path / "absent.whl")], {"c" * 64: 9}) == {"c" * 64: 9}


def test_an_unknown_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LockError, match=r"cannot learn the size of absent\.whl"):
        sizes.sizes([found(tmp_path / "absent.whl")], {})
