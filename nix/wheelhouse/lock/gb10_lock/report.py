"""Asks pip which file it would install for each pin, and reads its answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from gb10_lock.environment import Environment, Pin
from gb10_lock.errors import LockError
from gb10_lock.profiles import canonical
from gb10_lock.run import tool

_OLDEST_GLIBC = 5


@dataclass(frozen=True)
class Found:
    """A wheel as pip found it; `address` is used in this run only and never written down."""

    name: str
    version: str
    file: str
    sha256: str
    address: str


def platforms(machine: str, glibc: str) -> list[str]:
    """Every platform tag that a glibc of version `glibc` ("2.39") can run, newest first."""
    newest = int(glibc.split(".")[1])
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
    aliases = ["manylinux2014", "manylinux2010", "manylinux1"] if machine == "x86_64" else ["manylinux2014"]
    return [*tags, *(f"{alias}_{machine}" for alias in aliases), f"linux_{machine}"]


def parse_report(text: str, pins: list[Pin], where: str) -> list[Found]:
    """Reads pip's installation report; every pin must be answered by exactly one wheel with a SHA-256."""
    try:
        installs = json.loads(text)["install"]
        found = []
        for item in installs:
            download = item["download_info"]
            file = unquote(urlsplit(download["url"]).path).rsplit("/", 1)[-1]
            name, version = canonical(item["metadata"]["name"]), item["metadata"]["version"]
            sha256 = download.get("archive_info", {}).get("hashes", {}).get("sha256")
            if not file.endswith(".whl"):
                raise LockError(
                    f"{where}: {name} {version} has no wheel, only {file}; exclude or override it"
                )
            if not sha256:
                raise LockError(f"{where}: the package index gives no SHA-256 for {file}")
            found.append(Found(name, version, file, sha256, download["url"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LockError(f"{where}: cannot read pip's report ({type(error).__name__}: {error})") from None
    wanted, got = sorted(pin.name for pin in pins), sorted(item.name for item in found)
    if wanted != got:
        raise LockError(
            f"{where}: pip's report differs from the pins in {sorted(set(wanted) ^ set(got)) or got}"
        )
    return sorted(found, key=lambda item: item.name)


def ask_pip(env: Environment, pins: list[Pin]) -> list[Found]:
    """Runs pip's resolver for exactly `pins`. Only metadata is fetched where the index serves ranges."""
    with TemporaryDirectory(prefix="gb10-lock-") as name:
        work = Path(name)
        # "===" takes this very version: "==2.13.0" would also take a local folder's 2.13.0+cpu.
        lines = "".join(f"{pin.name}==={pin.version}\n" for pin in pins)
        (work / "pins.txt").write_text(lines, encoding="utf-8")
        command = ["pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--no-input"]
        command += ["--only-binary", ":all:", "--use-feature", "fast-deps", "--target", "target"]
        # pip compares Requires-Python with the Python it runs on; uv has compared it with the right one.
        command += ["--ignore-requires-python"]
        command += ["--implementation", "cp", "--python-version", env.python]
        command += ["--abi", env.tag, "--abi", "abi3", "--abi", "none"]
        for tag in platforms(env.machine, env.profile.glibc):
            command += ["--platform", tag]
        command += ["--report", "report.json", "--requirement", "pins.txt"]
        tool(command, doing=f"asking pip for the files of {env.label}", cwd=work)
        return parse_report((work / "report.json").read_text(encoding="utf-8"), pins, env.label)
