"""The image as it is built."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

UNWANTED = re.compile(r"^(pip3?|apt|apt-get|dpkg|su|sudo|mount|gcc|cc|ld|make|cmake)$")
"""Programs that serving does not use; the CPU's image has no compiler. (ninja comes with vLLM.)"""


def files(conf: dict[str, Any]) -> list[Path]:
    """Every file of the image's store paths."""
    found = []
    for layer in conf["store_layers"]:
        for path in layer:
            for folder, _folders, names in os.walk(path):
                found += [Path(folder, name) for name in names]
    return found


def test_no_file_lends_rights_and_no_program_is_there_that_serving_does_not_use(conf: dict[str, Any]) -> None:
    all_files = files(conf)
    assert len(all_files) > 10_000
    lending = [file for file in all_files if file.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
    assert lending == []
    programs = [
        file for file in all_files if file.parent.name in ("bin", "sbin") and UNWANTED.match(file.name)
    ]
    assert programs == []


def test_ours_are_last_and_small(conf: dict[str, Any]) -> None:
    layers = conf["store_layers"]
    names = [[re.sub(r"^/nix/store/[^-]+-", "", path) for path in layer] for layer in layers]
    assert {"gb10-cpu-env", "gb10-0.1.0", "serve", "gb10-image"} <= set(names[-1])
    ours = ("gb10-", "serve", "doctor", "entry.py")
    assert not [name for name in names[-1] if not name.startswith(ours)], names[-1]
    # Large wheels are alone, and before.
    assert any(len(layer) == 1 and layer[0].startswith("torch-") for layer in names)
    assert len(layers) < 100


def test_it_runs_as_nobody_in_particular(conf: dict[str, Any]) -> None:
    config = conf["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] and config["Cmd"] == ["serve"]
    assert "/cache" in config["Volumes"]
