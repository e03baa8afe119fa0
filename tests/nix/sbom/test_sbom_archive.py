"""What is read of an image's archive: written by the Debian base's own program, and spoiled."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from gb10_bom import archive
from gb10_bom.errors import BomError

ROOT = Path(__file__).parents[3]


def _stream() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom_stream", ROOT / "nix/debian/docker/stream.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """An archive of a store path and a root folder."""
    stored = tmp_path / "stored"
    (stored / "bin").mkdir(parents=True)
    (stored / "bin/tool").write_text("tool")
    (stored / "bin/link").symlink_to("tool")
    (stored / "empty").mkdir()
    root = tmp_path / "root.tar"
    with tarfile.open(root, "w") as tar:
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"root"))
    conf = {
        "architecture": "amd64",
        "config": {},
        "created": "1970-01-01T00:00:01Z",
        "root": str(root),
        "store_layers": [[str(stored)]],
    }
    out = io.BytesIO()
    _stream().write_image(conf, "small:1", out)
    return out.getvalue()


def test_files_and_hashes_are_the_archives(written: bytes, tmp_path: Path) -> None:
    content = archive.read(io.BytesIO(written))
    assert content.files == sorted(
        [f"{tmp_path}/stored/bin/link", f"{tmp_path}/stored/bin/tool", "/etc/passwd"]
    )
    assert content.archive == hashlib.sha256(written).hexdigest()
    assert content.created == "1970-01-01T00:00:01Z"
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        [manifest] = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        config = tar.extractfile(manifest["Config"]).read()  # type: ignore[union-attr]
        layers = [tar.extractfile(name).read() for name in manifest["Layers"]]  # type: ignore[union-attr]
    assert content.config == hashlib.sha256(config).hexdigest()
    assert content.layers == [hashlib.sha256(layer).hexdigest() for layer in layers]
    assert archive.Content.from_json(content.to_json()) == content


def test_a_layer_that_was_changed_is_refused(written: bytes) -> None:
    at = written.index(b"tool" + b"\0" * 100)
    with pytest.raises(BomError, match="layers have not the hashes"):
        archive.read(io.BytesIO(written[:at] + b"fool" + written[at + 4 :]))


@pytest.mark.parametrize("data", [b"", b"no archive" * 100])
def test_what_is_no_archive_is_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BomError, match="no archive of an image"):
        archive.read(io.BytesIO(data))
    done = subprocess.run(
        [sys.executable, "-m", "gb10_bom.archive", str(tmp_path / "out")],
        input=data,
        cwd=ROOT / "nix/image/bom",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.decode().startswith("sbom: error: this is no archive of an image (")
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out").exists()


def test_half_an_archive_is_refused(written: bytes) -> None:
    with pytest.raises(BomError, match="no archive of an image"):
        archive.read(io.BytesIO(written[: len(written) // 2]))
