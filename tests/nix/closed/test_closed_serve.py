"""`serve` answers in a root without the machine, maps nothing but the store, and leaves it as it was."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from conftest import HERE, Run, closure

SERVE = os.environ["GB10_SERVE_COMMAND"]
PYTHON = os.environ["GB10_PYTHON"]

NO_FILE = re.compile(
    r"\[.*\]|anon_inode:.*|/(dev/zero|memfd:.*|dev/shm/.*|SYSV.*)( \(deleted\))?|/tmp/gb10-serve-[^/]+/memory"
)
"""What a line of /proc/PID/maps names that holds no code: no file of a disk, or what serve notes there."""


def outside(mapped: dict[str, list[str]]) -> dict[str, list[str]]:
    """Of what processes have mapped, the files that are not in the store."""
    return {
        file: names
        for file, names in mapped.items()
        if not file.startswith("/nix/store/") and not NO_FILE.fullmatch(file)
    }


def test_a_completion_with_nothing_of_the_machine(run_in_empty_root: Run) -> None:
    ran = run_in_empty_root(closure("serve"), [PYTHON, "/tmp/asked.py", SERVE], files=[HERE / "asked.py"])
    assert ran.status == 0, ran.output + ran.errors
    said = json.loads(ran.output)
    print(said["log"])
    assert said["text"].strip(), said["log"]
    assert said["status"] == 0
    assert outside(said["mapped"]) == {}
    assert ran.written == []
    # It was looked at: torch is in what the engine has mapped, and the C library once.
    names = [Path(file).name for file in said["mapped"]]
    assert "libtorch_cpu.so" in names
    assert names.count("libc.so.6") == 1


def test_a_foreign_file_and_a_write_are_seen(run_in_empty_root: Run) -> None:
    """That the test above can fail: a process maps a file in /tmp, and writes byte code beside its source."""
    program = """
import json, mmap, sys, tokenize
this_file = tokenize.__file__
sys.path.insert(0, "/tmp")
import asked
with open("/tmp/asked.py", "rb") as file:
    kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
asked.note_maps()
with open(sys.prefix + "/lib/written", "w") as file:
    file.write("x")
with open(this_file, "a") as file:
    file.write("# changed")
print(json.dumps({file: sorted(names) for file, names in asked._mapped.items()}))
"""
    ran = run_in_empty_root(closure("python"), [PYTHON, "-c", program], files=[HERE / "asked.py"])
    assert ran.status == 0, ran.errors
    assert list(outside(json.loads(ran.output))) == ["/tmp/asked.py"]
    folder = Path(PYTHON).resolve().parts[3]
    changed = next(name for name in ran.written if name.endswith("/tokenize.py"))
    assert sorted(ran.written) == sorted([f"{folder}/lib/written", changed])


def test_the_root_is_empty(run_in_empty_root: Run) -> None:
    program = "import os; print(sorted(os.listdir('/')), os.listdir('/nix'), os.getuid())"
    ran = run_in_empty_root(closure("python"), [PYTHON, "-c", program])
    assert ran.output == "['dev', 'nix', 'proc', 'sys', 'tmp'] ['store'] 0\n"
