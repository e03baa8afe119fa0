"""Stand-ins for uv and pip that answer from a small table, in a small checkout."""

import json
import stat
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PROFILES = """
version = 1
[systems]
x86_64-linux = "x86_64"

[profiles.cpu]
systems = ["x86_64-linux"]
pythons = ["3.11"]
glibc = "2.36"
requirements = ["engine==1.0"]
fixed = ["torch-cpu"]
[[profiles.cpu.exclusions]]
name = "Heavy_Thing"
reason = "not needed"

[profiles.test]
base = "cpu"
systems = ["x86_64-linux"]
pythons = ["3.11"]
glibc = "2.36"
requirements = ["checker"]

[fixed.torch-cpu]
name = "torch"
version = "2.0+cpu"
index = "elsewhere"
needed-by = ["engine"]
requires = ["sums>=1"]
reason = "not on the index"
[[fixed.torch-cpu.wheels]]
system = "x86_64-linux"
python = "3.11"
file = "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl"
sha256 = "%s"
""" % ("a" * 64)

UV = """#!{python}
import json, pathlib, sys
table = json.loads(pathlib.Path({table!r}).read_text())
if table.get("uv_error"):
    sys.exit(table["uv_error"])
args = sys.argv[1:]
out = pathlib.Path(args[args.index("--output-file") + 1])
sources = [arg for arg in args if arg.endswith(".in")]
log = {{"args": args, "old": out.read_text() if out.exists() else None}}
log |= {{p.name: p.read_text() for p in pathlib.Path(".").iterdir() if p != out}}
pathlib.Path({logs!r}, sources[0] + ".json").write_text(json.dumps(log))
out.write_text("".join(line + "\\n" for line in table["uv"][sources[0]]))
"""

PIP = """#!{python}
import json, pathlib, sys
table = json.loads(pathlib.Path({table!r}).read_text())
if table.get("pip_error"):
    sys.exit(table["pip_error"])
args = sys.argv[1:]
pins = [line.split("===") for line in pathlib.Path("pins.txt").read_text().split()]
install = [
    {{
        "download_info": {{"url": table["files"][name]["url"],
                           "archive_info": {{"hashes": {{"sha256": table["files"][name]["sha256"]}}}}}},
        "metadata": {{"name": name, "version": version}},
    }}
    for name, version in pins
]
pathlib.Path(args[args.index("--report") + 1]).write_text(json.dumps({{"install": install}}))
"""


class FakeTools:
    """A checkout with profiles.toml, and uv and pip on PATH that answer from `table`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        (self.root / "python").mkdir(parents=True)
        self.profiles = self.root / "python" / "profiles.toml"
        self.profiles.write_text(PROFILES)
        self.lock = self.root / "python" / "wheels.lock.json"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.table_path, self.logs = folder / "table.json", folder / "logs"
        self.logs.mkdir()
        for name, text in (("uv", UV), ("pip", PIP)):
            path = self.bin / name
            path.write_text(
                text.format(python=sys.executable, table=str(self.table_path), logs=str(self.logs))
            )
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.table: dict[str, object] = {
            "uv": {
                "cpu.in": ["engine==1.0  # via -r cpu.in", "sums==1.2  # via engine, -r torch.in"],
                "test.in": ["checker==3.0  # via -r test.in", "sums==1.2  # via checker, -c constraints.txt"],
            },
            "files": {
                name: self.wheel(name, version)
                for name, version in (("engine", "1.0"), ("sums", "1.2"), ("checker", "3.0"))
            },
        }
        self.save()

    def wheel(self, name: str, version: str) -> dict[str, str]:
        """Makes a file of 10 bytes and returns what pip would report of it."""
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        path.write_bytes(b"0123456789")
        return {"url": path.as_uri(), "sha256": (name.encode().hex() + "0" * 64)[:64]}

    def save(self) -> None:
        """Makes `table` the answer of the tools."""
        self.table_path.write_text(json.dumps(self.table))

    def uv_log(self, profile: str = "cpu") -> dict[str, str]:
        """What uv was last called with: `args`, `old` (the previous pins) and the files beside it."""
        log: dict[str, str] = json.loads((self.logs / f"{profile}.in.json").read_text())
        return log
