"""Command line of the lock tool: `nix run .#lock` (see --help)."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gb10_lock import duplicates, environment, lockfile, profiles, report, sizes
from gb10_lock.environment import Environment, Pin
from gb10_lock.errors import LockError
from gb10_lock.lockfile import Lock, Wheel
from gb10_lock.report import Found


@dataclass(frozen=True)
class Paths:
    """The tool's files under python/ of a checkout."""

    profiles: Path
    pins: Path
    lock: Path

    @classmethod
    def below(cls, root: Path) -> "Paths":
        """The files of the checkout at `root`."""
        python = root / "python"
        return cls(python / "profiles.toml", python / "locks", python / "wheels.lock.json")

    def pins_of(self, env: Environment) -> Path:
        """The pins file of one environment."""
        return self.pins / f"{env.label}.txt"


def say(text: str) -> None:
    """A progress line, on standard error."""
    print(text, file=sys.stderr, flush=True)


def read_if_there(path: Path) -> str | None:
    """A file's text, or None if there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"cannot read {path}: {error}") from None


def fixed_wheels(env: Environment) -> list[Wheel]:
    """The environment's wheels that no index offers."""
    wheels = []
    for fixed in env.fixed.values():
        wheel = fixed.wheels[(env.system, env.python)]
        wheels.append(
            Wheel(
                fixed.name, fixed.version, wheel.file, wheel.sha256, wheel.size, fixed.needed_by, fixed.index
            )
        )
    return wheels


def names_of(env: Environment) -> set[str]:
    """What --only may call an environment: its profile, profile and system, or its label."""
    return {env.profile.name, f"{env.profile.name}-{env.system}", env.label}


def selected(envs: list[Environment], only: Sequence[str]) -> list[Environment]:
    """The environments that `only` names; all of them if it is empty."""
    for word in only:
        if not any(word in names_of(env) for env in envs):
            labels = ", ".join(env.label for env in envs)
            raise LockError(f"--only {word}: no such environment; there are: {labels}")
    return [env for env in envs if not only or names_of(env) & set(only)]


class Writer:
    """One run: resolves, asks pip, and collects what would be written."""

    def __init__(self, paths: Paths, *, upgrade: bool) -> None:
        self.paths = paths
        self.upgrade = upgrade
        self.pins: dict[str, list[Pin]] = {}
        self.texts: dict[Path, str] = {}

    def base_of(self, env: Environment) -> list[Pin]:
        """The pins of the environment that this one is put on top of; none for most."""
        if env.profile.base is None:
            return []
        if env.base_label not in self.pins:
            raise LockError(
                f"{env.label} stands on {env.base_label}, which is not resolved yet: lock that first"
            )
        return self.pins[env.base_label]

    def resolve(self, env: Environment) -> str:
        """Fills `pins` for one environment and says in a word what was done."""
        base = self.base_of(env)
        path = self.paths.pins_of(env)
        text = read_if_there(path)
        digest = environment.digest(env, base)
        if text is not None and not self.upgrade and environment.stamp(text) == digest:
            self.pins[env.label] = environment.parse_pins(text, path.name)
            word = "pinned"
        else:
            self.pins[env.label] = environment.resolve(env, base, None if self.upgrade else text)
            word = "resolved"
        self.texts[path] = environment.format_pins(self.pins[env.label], digest)
        return word

    def find(self, env: Environment) -> list[Found]:
        """pip's answer for one resolved environment."""
        pins = self.pins[env.label]
        found = report.ask_pip(env, pins)
        versions = {pin.name: pin.version for pin in pins}
        for item in found:
            if item.version != versions[item.name]:
                raise LockError(
                    f"{env.label}: pip found {item.name} {item.version} for {versions[item.name]}"
                )
        return found

    def lock(self, envs: list[Environment], chosen: list[Environment], old: Lock) -> Lock:
        """Builds the lock: `chosen` anew, the others of `envs` as they are in `old`."""
        known = {wheel.sha256: wheel.size for wheel in old.wheels.values() if wheel.size is not None}
        new = Lock()
        for number, env in enumerate(envs, 1):
            if env not in chosen:
                self.copy(env, old, new)
                continue
            where = f"[{number}/{len(envs)}] {env.label}:"
            start = time.monotonic()
            word = self.resolve(env)
            say(f"{where} {len(self.pins[env.label])} projects {word}, asking pip ...")
            found = self.find(env)
            known = sizes.sizes(found, known)
            why = {pin.name: pin.why for pin in self.pins[env.label]}
            wheels = [
                Wheel(item.name, item.version, item.file, item.sha256, known[item.sha256], why[item.name])
                for item in found
            ]
            wheels += fixed_wheels(env)
            new.add(env.profile.name, env.system, env.tag, wheels)
            total = sum(wheel.size or 0 for wheel in wheels)
            say(f"{where} {len(wheels)} wheels, {total} bytes, {time.monotonic() - start:.0f} s")
        return new

    def copy(self, env: Environment, old: Lock, new: Lock) -> None:
        """Takes over an environment that this run leaves alone, where it has been locked before."""
        text = read_if_there(self.paths.pins_of(env))
        files = old.profiles.get(env.profile.name, {}).get(env.system, {}).get(env.tag)
        if text is None or files is None:
            return
        pins = environment.parse_pins(text, self.paths.pins_of(env).name)
        self.pins[env.label] = pins
        why = {pin.name: pin.why for pin in pins} | {
            fixed.name: fixed.needed_by for fixed in env.fixed.values()
        }
        wheels = [old.wheels[file] for file in files]
        new.add(
            env.profile.name,
            env.system,
            env.tag,
            [replace(wheel, needed_by=why.get(wheel.name, wheel.needed_by)) for wheel in wheels],
        )


def write(args: argparse.Namespace, paths: Paths) -> int:
    """Writes (or with --check compares) the pins files and the lock file."""
    inputs = profiles.load(paths.profiles)
    envs = environment.environments(inputs)
    old_text = read_if_there(paths.lock)
    old = lockfile.parse(old_text, paths.lock.name) if old_text is not None else Lock()
    writer = Writer(paths, upgrade=args.upgrade)
    new = writer.lock(envs, selected(envs, args.only), old)
    replaced = lockfile.replaced_files(old, new)
    if replaced and not args.upgrade and not args.check:
        raise LockError(
            f"the index now offers another file for a locked version: {replaced[0]}; --upgrade takes it"
        )
    texts = writer.texts | {paths.lock: lockfile.render(new)}
    stale = [] if args.only else sorted(set(paths.pins.glob("*.txt")) - texts.keys())
    if args.check:
        differing = [path for path, text in texts.items() if read_if_there(path) != text]
        if differing or stale:
            names = ", ".join(sorted(path.name for path in [*differing, *stale]))
            print(f"would change {names}: {lockfile.summary(old, new)}")
            return 1
        print(f"unchanged: {paths.lock.name}, {len(new.wheels)} wheels")
        return 0
    paths.pins.mkdir(exist_ok=True)
    for path, text in texts.items():
        lockfile.write_whole(path, text)
    for path in stale:
        path.unlink()
    print(f"wrote {paths.lock.name}: {len(new.wheels)} wheels; {lockfile.summary(old, new)}")
    return 0


def show_duplicates(args: argparse.Namespace, paths: Paths) -> int:
    """Lists the files that several wheels of an environment install; 1 if one is not allowed."""
    inputs = profiles.load(paths.profiles)
    envs = environment.environments(inputs)
    chosen = selected(envs, args.only)
    writer = Writer(paths, upgrade=False)
    bad = 0
    for env in envs:
        writer.resolve(env)
        # Wheels without what they depend on are only read: nothing of theirs is unpacked over another's.
        if env not in chosen or not env.profile.dependencies:
            continue
        say(f"{env.label}: reading the wheels' lists of files ...")
        for wheel in fixed_wheels(env):
            say(f"{env.label}: {wheel.file} is not on the index and is left out of this comparison")
        found = writer.find(env)
        if env.profile.base:
            base = next(item for item in envs if item.label == env.base_label)
            found += writer.find(base)
        for duplicate in duplicates.find(found):
            allowed = duplicates.is_allowed(duplicate, env.profile, inputs.duplicates)
            bad += not allowed
            content = "same" if duplicate.same_content else "DIFFERENT"
            mark = "allowed" if allowed else "NOT ALLOWED"
            print(f"{env.label}\t{duplicate.path}\t{', '.join(duplicate.packages)}\t{content}\t{mark}")
    return 1 if bad else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="lock",
        description="Writes python/wheels.lock.json and python/locks/ out of python/profiles.toml. "
        "Versions that are pinned stay; only new or changed requirements are resolved.",
    )
    result.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout (default: this folder)")
    result.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only this profile or environment"
    )
    what = result.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="change nothing; exit 1 and say what would change")
    what.add_argument("--upgrade", action="store_true", help="resolve anew to the newest versions that fit")
    what.add_argument("--duplicates", action="store_true", help="list files that several wheels install")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; 0 done, 1 differences found, 2 something the user must mend."""
    args = parser().parse_args(argv)
    paths = Paths.below(args.root)
    try:
        return show_duplicates(args, paths) if args.duplicates else write(args, paths)
    except LockError as error:
        print(f"lock: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lock: error: interrupted; nothing was written", file=sys.stderr)
        return 2
