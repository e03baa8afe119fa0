"""Links the files of unpacked wheels into one environment.

usage: environment.py PLAN.json OUT

PLAN.json holds ``packages`` (store paths), ``sitePackages`` (relative), ``interpreter``, ``pythonVersion``,
``isolated`` (whether the commands ignore PYTHONPATH and the user's site-packages, by ``python3 -I``)
and ``allowedDuplicates`` (paths in site-packages that two wheels may both ship; the first one is taken).
A file that two wheels ship and that is not listed is an error, since which one wins would be chance.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import sys
from pathlib import Path

BYTE_CODE = re.compile(r"__pycache__/([^/]+)\.cpython-\d+\.pyc$")
LAUNCHER = """#!{python}
import sys
from {module} import {attribute}
sys.exit({call}())
"""


def link_tree(
    source: Path, target: Path, owner: dict[str, Path], allowed: set[str], clashes: list[str]
) -> None:
    """Link every file below source at the same place below target."""
    for folder, _, files in os.walk(source):
        relative = Path(folder).relative_to(source)
        (target / relative).mkdir(parents=True, exist_ok=True)
        for name in files:
            place = str(relative / name)
            if place in owner:
                # Byte code is a duplicate where its source is.
                if BYTE_CODE.sub(r"\1.py", place) not in allowed:
                    clashes.append(f"{place}: {owner[place]} and {source}")
                continue
            owner[place] = source
            (target / place).symlink_to(source / place)


def write_launchers(site: Path, bin_folder: Path, python: str) -> None:
    """Write one script for each console entry point, as an installer would."""
    for entry_points in sorted(site.glob("*.dist-info/entry_points.txt")):
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(entry_points)
        if not parser.has_section("console_scripts"):
            continue
        for name, target in parser.items("console_scripts"):
            module, _, attribute = target.split("[")[0].strip().partition(":")
            text = LAUNCHER.format(
                python=python, module=module, attribute=attribute.split(".")[0], call=attribute
            )
            script = bin_folder / name
            if not script.exists():
                script.write_text(text)
                script.chmod(0o755)


def main() -> int:
    """Build the environment; exit 1 where wheels ship the same file."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    site = out / plan["sitePackages"]
    bin_folder = out / "bin"
    site.mkdir(parents=True)
    bin_folder.mkdir()
    python = f"{bin_folder}/python3" + (" -I" if plan["isolated"] else "")
    owner: dict[str, Path] = {}
    bin_owner: dict[str, Path] = {}
    clashes: list[str] = []
    for package in map(Path, plan["packages"]):
        link_tree(package / plan["sitePackages"], site, owner, set(plan["allowedDuplicates"]), clashes)
        scripts = package / "bin"
        if not scripts.is_dir():
            continue
        for script in sorted(scripts.iterdir()):
            target = bin_folder / script.name
            if target.name in bin_owner:
                clashes.append(f"bin/{target.name}: {bin_owner[target.name]} and {scripts}")
                continue
            bin_owner[target.name] = scripts
            with script.open("rb") as handle:
                first = handle.readline()
            if first.startswith(b"#!python"):
                target.write_bytes(f"#!{python}\n".encode() + script.read_bytes()[len(first) :])
                target.chmod(0o755)
            else:
                target.symlink_to(script)
    if clashes:
        print(f"{len(clashes)} files come with two wheels; list them in python/profiles.toml or drop one:")
        print("\n".join(f"  {clash}" for clash in clashes[:40]))
        return 1
    interpreter = Path(plan["interpreter"])
    (out / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\n"
        f"include-system-site-packages = false\nversion = {plan['pythonVersion']}\n"
    )
    for name in ("python", "python3", f"python{plan['pythonVersion']}"):
        (bin_folder / name).symlink_to(interpreter)
    write_launchers(site, bin_folder, python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
