"""The lock file: its model, its text and how it is written."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from gb10_lock.errors import LockError

VERSION = 1


@dataclass(frozen=True)
class Wheel:
    """One locked wheel. `size` is in bytes; `index` is set when it does not come from the default index."""

    name: str
    version: str
    file: str
    sha256: str
    size: int | None
    needed_by: tuple[str, ...]
    index: str | None = None


@dataclass
class Lock:
    """profile -> system -> interpreter tag -> wheel file names, and the wheels by file name."""

    profiles: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    wheels: dict[str, Wheel] = field(default_factory=dict)

    def add(self, profile: str, system: str, tag: str, wheels: list[Wheel]) -> None:
        """Records an environment. Wheels of the same file name must be the same file."""
        for wheel in wheels:
            old = self.wheels.get(wheel.file, wheel)
            if (old.sha256, old.size) != (wheel.sha256, wheel.size):
                raise LockError(
                    f"two different files are called {wheel.file}: {old.sha256} and {wheel.sha256}"
                )
            needed_by = tuple(sorted({*old.needed_by, *wheel.needed_by}))
            self.wheels[wheel.file] = replace(wheel, needed_by=needed_by)
        names = sorted(wheel.file for wheel in wheels)
        self.profiles.setdefault(profile, {}).setdefault(system, {})[tag] = names


def _wheel_line(wheel: Wheel) -> str:
    entry: dict[str, object] = {
        "name": wheel.name,
        "version": wheel.version,
        "file": wheel.file,
        "sha256": wheel.sha256,
        "size": wheel.size,
    }
    if wheel.index is not None:
        entry["index"] = wheel.index
    entry["neededBy"] = list(wheel.needed_by)
    return f"    {json.dumps(wheel.file)}: {json.dumps(entry)}"


def render(lock: Lock) -> str:
    """The text of the lock file: sorted, one wheel on a line."""
    profiles = json.dumps(lock.profiles, indent=2, sort_keys=True).replace("\n", "\n  ")
    wheels = ",\n".join(_wheel_line(lock.wheels[file]) for file in sorted(lock.wheels))
    return f'{{\n  "version": {VERSION},\n  "profiles": {profiles},\n  "wheels": {{\n{wheels}\n  }}\n}}\n'


def parse(text: str, where: str) -> Lock:
    """Reads a lock file's text."""
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise LockError(f"{where}: version {data['version']!r} is not {VERSION}; delete it and run again")
        wheels = {
            file: Wheel(
                name=item["name"],
                version=item["version"],
                file=item["file"],
                sha256=item["sha256"],
                size=item["size"],
                needed_by=tuple(item["neededBy"]),
                index=item.get("index"),
            )
            for file, item in data["wheels"].items()
        }
        return Lock(profiles=data["profiles"], wheels=wheels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LockError(
            f"{where} is not a lock file ({type(error).__name__}: {error}); delete it and run again"
        ) from None


def summary(old: Lock, new: Lock) -> str:
    """One line that says how `new` differs from `old`."""
    gone, come = sorted(old.wheels.keys() - new.wheels.keys()), sorted(new.wheels.keys() - old.wheels.keys())
    same = old.wheels.keys() & new.wheels.keys()
    changed = sorted(file for file in same if old.wheels[file] != new.wheels[file])
    parts = [
        f"{len(files)} {word} ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})"
        for word, files in (("added", come), ("removed", gone), ("changed", changed))
        if files
    ]
    if old.profiles != new.profiles:
        parts.append("profiles differ")
    return "; ".join(parts) or "only the layout differs"


def replaced_files(old: Lock, new: Lock) -> list[str]:
    """Wheels that are another file than before although their environment, name and version are the same."""
    found = []
    for profile, systems in old.profiles.items():
        for system, tags in systems.items():
            for tag, files in tags.items():
                known = {
                    (old.wheels[file].name, old.wheels[file].version): old.wheels[file] for file in files
                }
                for file in new.profiles.get(profile, {}).get(system, {}).get(tag, []):
                    wheel = new.wheels[file]
                    was = known.get((wheel.name, wheel.version), wheel)
                    if was.sha256 != wheel.sha256:
                        found.append(f"{was.file} -> {wheel.file} ({profile}, {system}, {tag})")
    return found


def write_whole(path: Path, text: str) -> None:
    """Replaces `path` in one step, so that a reader or a crash never sees half a file."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise LockError(f"cannot write {path}: {error.strerror}") from None
