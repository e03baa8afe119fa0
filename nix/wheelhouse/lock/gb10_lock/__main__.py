"""Command line of the lock tool: `nix run .#lock` (see --help)."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from gb10_lock import profiles
from gb10_lock.profiles import Environment
from gb10_lock.pylock import LockError, Wheel, changes, render
from gb10_lock.resolve import read, resolve


def _read_if_there(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LockError(f"cannot read {path}: {error}") from None


def _write_all(texts: dict[Path, str]) -> None:
    """Writes every file beside its place first, and then moves them there."""
    made: dict[Path, str] = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(exist_ok=True)
            with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as handle:
                made[path] = handle.name
                handle.write(text)
            os.chmod(handle.name, 0o644)
        for path, name in made.items():
            os.replace(name, path)
    except OSError as error:
        raise LockError(f"cannot write {path}: {error.strerror}") from None
    finally:
        for name in made.values():
            Path(name).unlink(missing_ok=True)


def _selected(envs: list[Environment], only: Sequence[str]) -> list[Environment]:
    """The environments that `only` names by profile, by profile and system, or by label; all if it is empty."""
    names = {env.label: {env.name, f"{env.name}-{env.system}", env.label} for env in envs}
    for word in only:
        if not any(word in known for known in names.values()):
            raise LockError(f"--only {word}: no such environment; there are: {', '.join(names)}")
    return [env for env in envs if not only or names[env.label] & set(only)]


def lock(root: Path, *, only: Sequence[str], upgrade: bool, check: bool) -> int:
    """Writes the locks of the checkout at `root`, or with `check` says what would change; 1 if something would."""
    folder = root / "python" / "locks"
    text = _read_if_there(root / "python" / "profiles.toml")
    if text is None:
        raise LockError(
            f"there is no {root / 'python' / 'profiles.toml'}; call this in a checkout, or name one with --root"
        )
    envs = profiles.parse(text)
    chosen = _selected(envs, only)
    texts: dict[Path, str] = {}
    wheels: dict[str, list[Wheel]] = {}
    said = []
    for env in envs:
        path = folder / f"pylock.{env.label}.toml"
        before = _read_if_there(path)
        old = [] if before is None else read(env, before, path.name)
        wheels[env.label] = old
        if env not in chosen:
            continue
        if env.base and not wheels[env.base]:
            raise LockError(f"{env.label} stands on {env.base}, which has no lock yet: lock that first")
        start = time.monotonic()
        new = resolve(env, wheels[env.base] if env.base else [], [] if upgrade else old)
        wheels[env.label] = new
        differs = changes(old, new)
        moved = [words for words in differs if words.endswith("(file)")]
        if moved and not upgrade and not check:
            raise LockError(
                f"{env.label}: the index now offers another file for a locked version: {moved[0]}; --upgrade takes it"
            )
        if render(new) != before:
            texts[path] = render(new)
            said.append(f"{env.label}: {', '.join(differs) or 'only the layout differs'}")
        size = sum(wheel.size or 0 for wheel in new) / 1e6
        count = f"[{chosen.index(env) + 1}/{len(chosen)}]"
        print(
            f"{count} {env.label}: {len(new)} wheels, {size:.0f} MB, {time.monotonic() - start:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    known = {f"pylock.{env.label}.toml" for env in envs}
    stale = [] if only else [path for path in sorted(folder.glob("*")) if path.name not in known]
    said += [f"{path.name}: no profile has it" for path in stale]
    if not check:
        _write_all(texts)
        for path in stale:
            path.unlink()
    print("\n".join(said) if said else "unchanged")
    return 1 if check and said else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; 0 done, 1 differences found, 2 something the user must mend."""
    parser = argparse.ArgumentParser(
        prog="lock",
        description="Writes python/locks/ out of python/profiles.toml. Versions that are pinned stay as long as they fit.",
    )
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout (default: this folder)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only this profile or environment"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="change nothing; exit 1 and say what would change")
    what.add_argument("--upgrade", action="store_true", help="resolve anew to the newest versions that fit")
    args = parser.parse_args(argv)
    try:
        return lock(args.root, only=args.only, upgrade=args.upgrade, check=args.check)
    except LockError as error:
        print(f"lock: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lock: error: interrupted; nothing was written", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
