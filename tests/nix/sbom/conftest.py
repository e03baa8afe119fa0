"""A small image to make bills of materials of, and the CPU's as the flake builds it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "nix/image/bom"))

from gb10_bom import bom, debian, patches  # noqa: E402
from gb10_bom.archive import Content  # noqa: E402
from gb10_bom.inputs import Inputs, Item, Valid, Vendored, Wheel, read  # noqa: E402

PATCH = """A title

Wheel: one 1.0
Symptom: it is wrong, and this
  goes on.
Evidence: seen.
Upstream: https://example.org/issues/1 (open)
Test: tests/nix/sbom/test_sbom_document.py
Remove when: never.

--- a/one/a.py
+++ b/one/a.py
@@ -1 +1 @@
-1
+2
"""
OWN_BOM = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "components": [
        {
            "type": "library",
            "name": "crate",
            "version": "2.0",
            "purl": "pkg:cargo/crate@2.0",
            "scope": "required",
        },
        {"type": "library", "name": "tool", "version": "1", "purl": "pkg:cargo/tool@1", "scope": "excluded"},
        {"type": "library", "name": "one", "version": "1.0", "purl": "pkg:pypi/one@1.0"},
        {"type": "library", "name": "zlib-ng", "version": "1.3", "purl": "pkg:rpm/almalinux/zlib-ng@1.3"},
    ],
}
DIGEST = hashlib.sha256(b"wheel").hexdigest()
DEB = hashlib.sha256(b"deb").hexdigest()


@pytest.fixture
def small(tmp_path: Path) -> Inputs:
    """An image of one wheel, a package cut from Debian's and the files outside the store."""
    store = tmp_path / "nix/store"
    wheel, cut = f"{store}/aaa-one-1.0", f"{store}/bbb-debian-runtime"
    site = f"{wheel}/lib/python3.11/site-packages"
    files = [
        f"{site}/one/__init__.py",
        f"{site}/one/__pycache__/__init__.cpython-311.pyc",
        f"{site}/one.libs/libz-0123.so.1",
        f"{site}/one-1.0.dist-info/sboms/one.cdx.json",
        f"{cut}/lib/libc.so.6",
        f"{cut}/lib/ld-linux-x86-64.so.2",
        "/bin/sh",
        "/etc/passwd",
    ]
    said = Path(files[3])
    said.parent.mkdir(parents=True)
    said.write_text(json.dumps(OWN_BOM))
    return Inputs(
        name="small",
        version="0.1.0",
        description="A small image",
        licence="Apache-2.0",
        system="x86_64-linux",
        profile="cpu",
        site_packages="lib/python3.11/site-packages",
        items=[
            Item(
                wheel,
                "wheel",
                "one",
                "1.0",
                derivation=f"{store}/ddd-one-1.0.drv",
                patches=["/p"],
                changes="rm x\n",
            ),
            Item(cut, "cut", "debian-runtime", licence="Apache-2.0"),
        ],
        root_files=["bin/sh", "etc/passwd"],
        content=Content("0" * 64, "1" * 64, "1970-01-01T00:00:01Z", ["2" * 64], sorted(files)),
        registration={wheel: Valid("sha256:w", [cut, wheel]), cut: Valid("sha256:c", [])},
        wheels={"one": Wheel("one", "1.0", "one-1.0-py3-none-any.whl", DIGEST, "pypi")},
        licences={"one": "MIT"},
        vendored=[Vendored("one", ["one.libs/libz-*"], "zlib", "Zlib", "zlib-ng")],
        packages={"libc6": debian.Package("libc6", "2.36-9", "amd64", DEB)},
        package_licences={"libc6": "LGPL-2.1-or-later"},
        cuts={"debian-runtime": {"libc6": ["lib/@loader@", "lib/libc.so.6"]}},
        patches={"/p": patches.parse("0001-one.patch", PATCH)},
        store=str(store),
    )


@pytest.fixture(scope="session")
def real() -> Inputs:
    """The CPU image's inputs."""
    plan = os.environ.get("GB10_SBOM_PLAN")
    if not plan:
        pytest.skip("GB10_SBOM_PLAN is not set: the flake's check has it")
    return read(json.loads(Path(plan).read_text()))


@pytest.fixture(scope="session")
def real_text(real: Inputs) -> str:
    """The CPU image's bill of materials, as it is built."""
    folder = Path(os.environ["GB10_SBOM"])
    text = (folder / f"{real.name}.cdx.json").read_text()
    assert bom.to_json(bom.make(real)) == text, "it was built of other inputs"
    return text


@pytest.fixture(params=["small", "real"])
def case(request: pytest.FixtureRequest) -> tuple[Inputs, dict[str, Any]]:
    """Inputs with their document: of the small image, and of the CPU's."""
    inputs: Inputs = request.getfixturevalue(request.param)
    text = request.getfixturevalue("real_text") if request.param == "real" else bom.to_json(bom.make(inputs))
    return inputs, json.loads(text)
