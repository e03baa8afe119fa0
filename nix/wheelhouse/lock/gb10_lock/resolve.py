"""Resolves one environment with uv."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import canonicalize_name

from gb10_lock.profiles import Environment
from gb10_lock.pylock import LockError, Wheel, parse, render, tags


def _uv(arguments: list[str], *, doing: str, folder: Path) -> None:
    # Settings of the folder that the tool is called in have no say.
    command = ["uv", "pip", "compile", "--quiet", "--color", "never", "--no-python-downloads", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LockError("`uv` is not on PATH: run this tool as `nix run .#lock`") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or "it said nothing"
        raise LockError(f"{doing}: uv failed: {words.removeprefix('error: '):.500}")


def resolve(env: Environment, base: list[Wheel], old: list[Wheel]) -> list[Wheel]:
    """The environment's wheels, without those of its base. Versions of `old` stay wherever they still fit."""
    profile = env.profile
    own = [wheel for wheel, _ in env.fixed]
    # What uv must not look for: no index has it, or the base brings it.
    away = {wheel.name for wheel in (*own, *base) if wheel.index is not None}
    away |= {canonicalize_name(item.name) for item in profile.exclusions}
    files = {
        "requirements": [*profile.requirements, *(line for _, requires in env.fixed for line in requires)],
        "constraints": [
            *(rule.requirement for rule in profile.constraints),
            *(f"{wheel.name}=={wheel.version}" for wheel in base),
        ],
        "overrides": [rule.requirement for rule in profile.overrides],
        "excludes": sorted(away),
    }
    with TemporaryDirectory(prefix="gb10-lock-") as name:
        folder = Path(name)
        for stem, lines in files.items():
            (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        out = folder / "pylock.toml"
        if old:
            # uv takes pins from the file that it will write.
            out.write_text(render(old), encoding="utf-8")
        arguments = ["--format", "pylock.toml", "--output-file", out.name, "--only-binary", ":all:"]
        arguments += ["--python", sys.executable, "--python-version", env.python]
        arguments += ["--python-platform", f"{env.machine}-manylinux_{profile.glibc.replace('.', '_')}"]
        arguments += [
            part for stem in ("constraints", "overrides", "excludes") for part in (f"--{stem}", f"{stem}.txt")
        ]
        arguments += [] if profile.dependencies else ["--no-deps"]
        _uv([*arguments, "requirements.txt"], doing=f"resolving {env.label}", folder=folder)
        found = read(env, out.read_text(encoding="utf-8"), env.label)
    lacking = env.asked - {wheel.name for wheel in found}
    if lacking:
        raise LockError(
            f"{env.label}: the resolution lacks {min(lacking)}; check its markers and the exclusions"
        )
    in_base = {wheel.name for wheel in base}
    return [*(wheel for wheel in found if wheel.name not in in_base), *own]


def read(env: Environment, text: str, where: str) -> list[Wheel]:
    """The wheels of a lock of this environment."""
    return parse(text, where, env.python, tags(env.machine, env.python, env.profile.glibc))
