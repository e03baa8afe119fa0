"""Command line of the lock tool: `nix run .#lock` (see --help)."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from gb10_lock import profiles
from gb10_lock.profiles import Environment
from gb10_lock.pylock import LockError, Wheel, render
from gb10_lock.resolve import read, resolve


def _selected(envs: list[Environment], only: Sequence[str]) -> list[Environment]:
    """The environments that `only` names by profile, profile and system, or label; all if it is empty."""
    names = {env.label: {env.name, f"{env.name}-{env.system}", env.label} for env in envs}
    for word in only:
        if not any(word in known for known in names.values()):
            raise LockError(f"--only {word}: no such environment; there are: {', '.join(names)}")
    return [env for env in envs if not only or names[env.label] & set(only)]


def _changes(label: str, old: list[Wheel], new: list[Wheel], *, allow_moved: bool) -> str:
    """In words what differs. LockError if a locked version has another file, unless `allow_moved`."""
    before, after = ({wheel.name: wheel for wheel in wheels} for wheels in (old, new))
    words = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None or now is None or was.version != now.version:
            words.append(f"{name} {was.version if was else 'none'} -> {now.version if now else 'none'}")
        elif was != now:
            if not allow_moved:
                raise LockError(
                    f"{label}: the index now offers {now.file} for {was.file}; --upgrade takes it"
                )
            words.append(f"{name} {was.version} (another file)")
    return f"{label}: {', '.join(words) or 'only the layout differs'}"


def lock(root: Path, *, only: Sequence[str], upgrade: bool, check: bool) -> int:
    """Writes the locks of the checkout at `root`, all or none; with `check` only says what would change.

    Returns 1 if `check` found a difference, else 0.
    """
    folder = root / "python" / "locks"
    envs = profiles.parse((root / "python" / "profiles.toml").read_text(encoding="utf-8", errors="replace"))
    chosen = _selected(envs, only)
    texts: dict[str, str] = {}
    wheels: dict[str, list[Wheel]] = {}
    said = []
    for env in envs:
        path = folder / f"pylock.{env.label}.toml"
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        old = wheels[env.label] = read(env, before, path.name) if before else []
        if env not in chosen:
            continue
        base = wheels[env.base] if env.base else []
        if env.base and not base:
            raise LockError(f"{env.label} stands on {env.base}, which has no lock yet: lock that first")
        start = time.monotonic()
        new = wheels[env.label] = resolve(env, base, [] if upgrade else old)
        if render(new) != before:
            texts[path.name] = render(new)
            said.append(_changes(env.label, old, new, allow_moved=upgrade or check))
        size, seconds = sum(wheel.size or 0 for wheel in new) / 1e6, time.monotonic() - start
        line = f"[{chosen.index(env) + 1}/{len(chosen)}] {env.label}: {len(new)} wheels"
        print(f"{line}, {size:.0f} MB, {seconds:.1f} s", file=sys.stderr, flush=True)
    known = {f"pylock.{env.label}.toml" for env in envs}
    stale = [] if only else sorted(path for path in folder.glob("*") if path.name not in known)
    said += [f"{path.name}: no profile has it" for path in stale]
    if not check:
        folder.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".locks-") as made:
            for name, text in texts.items():
                Path(made, name).write_text(text, encoding="utf-8")
            for name in texts:
                Path(made, name).replace(folder / name)
        for path in stale:
            path.unlink()
    print("\n".join(said) or "unchanged")
    return 1 if check and said else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; 0 done, 1 differences found, 2 something the user must mend."""
    parser = argparse.ArgumentParser(
        prog="lock",
        description="Writes python/locks/ out of python/profiles.toml. Locked versions stay while they fit.",
        epilog="`lock debian` writes nix/debian/packages.lock (`lock debian --help`).",
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
    except (LockError, OSError) as error:
        print("lock: error:", *str(error).split(), file=sys.stderr)
    except KeyboardInterrupt:
        print("lock: error: interrupted; nothing was written", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
