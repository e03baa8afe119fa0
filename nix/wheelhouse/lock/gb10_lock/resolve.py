"""Resolves one environment with uv."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import canonicalize_name

from gb10_lock.profiles import Environment
from gb10_lock.pylock import LockError, Wheel, parse, render, tags


def read(env: Environment, text: str, where: str) -> list[Wheel]:
    """The wheels of a lock of this environment."""
    return parse(text, where, env.python, tags(env.machine, env.python, env.profile.glibc))


def resolve(env: Environment, base: list[Wheel], old: list[Wheel]) -> list[Wheel]:
    """The environment's wheels, without those of its base. Versions of `old` stay wherever they still fit."""
    profile = env.profile
    # uv cannot be told of a project that no index has: what such a one depends on is asked for in its place.
    away = {wheel.name for wheel in (*env.fixed, *base) if wheel.index is not None}
    away |= {canonicalize_name(item.name) for item in profile.exclusions}
    pins = [f"{wheel.name}=={wheel.version}" for wheel in base]
    files = {
        "requirements": [*profile.requirements, *env.fixed_requires],
        "constraints": [*(item.requirement for item in profile.constraints), *pins],
        "excludes": sorted(away),
    }
    command = ["uv", "pip", "compile", "--quiet", "--color", "never", "--only-binary", ":all:"]
    command += ["--format", "pylock.toml", "--output-file", "pylock.toml", "requirements.txt"]
    command += ["--python", sys.executable, "--no-python-downloads", "--python-version", env.python]
    command += ["--python-platform", f"{env.machine}-manylinux_{profile.glibc.replace('.', '_')}"]
    command += [f"--{stem}={stem}.txt" for stem in ("constraints", "excludes")]
    command += [] if profile.dependencies else ["--no-deps"]
    with TemporaryDirectory(prefix="gb10-lock-") as folder:
        for stem, lines in files.items():
            Path(folder, f"{stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        out = Path(folder, "pylock.toml")
        if old:
            # uv keeps the versions of the file that it writes.
            out.write_text(render(old), encoding="utf-8")
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise LockError("`uv` is not on PATH: run this tool as `nix run .#lock`") from None
        if done.returncode != 0:
            words = " ".join(done.stderr.split()).removeprefix("error: ") or "it said nothing"
            raise LockError(f"{env.label}: uv failed: {words:.500}")
        found = read(env, out.read_text(encoding="utf-8"), env.label)
    lacking = env.asked - {wheel.name for wheel in found}
    if lacking:
        raise LockError(f"{env.label}: the resolution lacks {min(lacking)}; is it excluded?")
    in_base = {wheel.name for wheel in base}
    wheels = [*(wheel for wheel in found if wheel.name not in in_base), *env.fixed]
    return sorted(wheels, key=lambda wheel: wheel.name)
