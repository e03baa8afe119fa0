"""Bills of materials of the images: what nix/image/sbom.nix calls (see --help)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gb10_bom import bom, check, debian, provenance, vex
from gb10_bom.errors import BomError
from gb10_bom.inputs import read


def _plan(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BomError(f"{path} is no plan ({error})") from None
    return plan


def _sbom(args: argparse.Namespace) -> None:
    inputs = read(_plan(args.plan))
    text = bom.to_json(bom.make(inputs))
    if found := check.problems(text, inputs):
        for line in found[1:20]:
            print(f"sbom: {line}", file=sys.stderr)
        raise BomError(f"{found[0]} ({len(found)} in all)")
    document = json.loads(text)
    statements = vex.make(vex.parse(args.advisories.read_text(encoding="utf-8")), document)
    if found := vex.problems(statements, document):
        raise BomError(f"the OpenVEX document: {'; '.join(found)}")
    (args.out / f"{inputs.name}.cdx.json").write_text(text, encoding="utf-8")
    (args.out / f"{inputs.name}.openvex.json").write_text(vex.to_json(statements), encoding="utf-8")
    print(f"{inputs.name}: {len(inputs.content.files)} files; {check.counted(document)}")


def _provenance(args: argparse.Namespace) -> None:
    plan = _plan(args.plan)
    inputs = read(plan)
    locks = {name: Path(path) for name, path in (pair.split("=", 1) for pair in args.lock)}
    statement = provenance.make(
        inputs,
        output=args.output,
        revision=args.revision,
        nar_hash=args.nar_hash,
        base=plan["base"],
        locks=locks,
    )
    (args.out / f"{inputs.name}.intoto.json").write_text(provenance.to_json(statement), encoding="utf-8")
    predicate = provenance.to_json(statement["predicate"])
    (args.out / f"{inputs.name}.provenance.json").write_text(predicate, encoding="utf-8")


def _debian_files(args: argparse.Namespace) -> None:
    packages = [path for path in args.paths if path.suffix == ".deb"]
    cuts = [path for path in args.paths if path.suffix != ".deb"]
    found = debian.table(packages, cuts, args.system)
    lines = [
        f"  {json.dumps(cut)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(places)}" for name, places in table.items())
        + "\n  }"
        for cut, table in found.items()
    ]
    print("{\n" + ",\n".join(lines) + "\n}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gb10_bom", description="bills of materials of the images")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sbom = commands.add_parser(
        "sbom", help="write an image's bill of materials, checked against its content, and its VEX"
    )
    sbom.add_argument("plan", type=Path)
    sbom.add_argument("advisories", type=Path, help="nix/image/advisories.toml")
    sbom.set_defaults(run=_sbom)
    sbom.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    made = commands.add_parser("provenance", help="write the SLSA provenance of an image's build")
    made.add_argument("plan", type=Path)
    made.add_argument("--output", required=True, help="the flake's attribute")
    made.add_argument("--revision", required=True, help="the flake's commit, or unknown")
    made.add_argument("--nar-hash", required=True, help="the hash of the flake's files, or unknown")
    made.add_argument("--lock", action="append", default=[], metavar="NAME=FILE", help="what pins the rest")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    made.set_defaults(run=_provenance)
    files = commands.add_parser(
        "debian-files",
        help="print nix/image/debian-files.json, from packages (*.deb) and store paths cut out of them",
    )
    files.add_argument("--system", default="x86_64-linux", choices=sorted(debian.TRIPLES))
    files.add_argument("paths", nargs="+", type=Path)
    files.set_defaults(run=_debian_files)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done, 2 something to mend."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (BomError, OSError) as error:
        print("sbom: error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
