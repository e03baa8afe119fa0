"""The text of the testbed model: Python sources and documents in wheels, filtered, in one JSON-lines file.

A document is one file of a package: `{"package", "path", "text"}`. The same wheels, options and held-out text
give the same bytes, whatever the order of the arguments. Needs the standard library and typer alone; a
bar needs tqdm.
"""

import hashlib
import io
import lzma
import re
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeVar

from typer import Option

from gb10.errors import UserError
from gb10.files import replacing, write_json
from gb10_lab.text.documents import Document, read_documents

SEED = 20261122
"""Decides which documents stay where a limit cuts."""

PACKAGE_BYTES = 6_000_000
"""The most text that one package gives, in bytes of UTF-8."""

TOTAL_BYTES = 285_000_000
"""The most text of all packages, in bytes of UTF-8."""

HELD_OUT_SHARE = 0.2
"""A document with a larger share of its lines in the held-out text is left out."""

ALLOWED_LICENCES = frozenset(
    [
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "HPND", "ISC", "MIT", "MIT-0"),
        *("MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    ]
)
"""SPDX names of the licences under which text is taken."""

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zero-Clause BSD (0BSD)": "0BSD",
    "zlib/libpng License": "Zlib",
}
"""PyPI's classifiers below `License :: OSI Approved ::`. `BSD` stands for either BSD licence."""

LICENCE_FIELDS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd": "BSD",
    "bsd-3-clause": "BSD-3-Clause",
    "isc": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
}
"""What packages without classifier or expression write in the field `License`, in lower case."""

OVERRIDES = {
    "numpy": (
        "BSD-3-Clause",
        "the other terms of its expression are for bundled compiled code; its Python files are BSD-3-Clause",
    ),
}
"""Package -> licence of its Python files and the reason, where the metadata says more than is meant here."""

_SUFFIXES = (".py", ".rst", ".md")
_VENDORED = frozenset(
    [
        *("_extern", "_external", "_third_party", "_vendor", "_vendored", "extern", "external", "externals"),
        *("site-packages", "third_party", "thirdparty", "vendor", "vendored", "vendored_packages"),
    ]
)
_GENERATED_NAME = re.compile(r"(_pb2|_pb2_grpc|\.min|_generated|_parsetab|parsetab|lextab|yacctab)\.\w+$")
_GENERATED_TEXT = re.compile(
    r"do not (edit|modify)|auto(matically |-)?generated|generated (automatically|by|from|with)|@generated",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"[0-9]")
_LONG_LITERAL = re.compile(r"[A-Za-z0-9+/=\\]{160}")
_HEADER = re.compile(r"(?:#[^\n]*\n)+\n*")
_HEADER_WORDS = re.compile(r"copyright|licen[cs]e|spdx", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|(endoftext|im_start|im_end)\|>")
_SPACE_AT_END = re.compile(r"[ \t\f\r]+$", re.MULTILINE)

_MIN_BYTES, _MAX_BYTES = 200, 100_000
_MAX_LINE, _MAX_MEAN_LINE = 400, 72.0
_MAX_DIGITS, _MAX_NOT_ASCII, _MIN_DISTINCT_LINES = 0.12, 0.05, 0.4
_MIN_LINE = 16

Item = TypeVar("Item")


@dataclass
class Package:
    """A wheel: where its text is from, and what it gave (`documents`, and `size` in bytes of UTF-8)."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    documents: int = 0
    size: int = 0


@dataclass
class Corpus:
    """Documents in their final order, their packages by name, and what was left out and why (documents)."""

    documents: list[Document]
    packages: list[Package]
    dropped: dict[str, int] = field(default_factory=dict)


def licence_of(metadata: Message, name: str) -> str:
    """Give the licence of a wheel's metadata, in SPDX's words; `BSD` where it does not say which one.

    Raises UserError when it states none, or one that is not in ALLOWED_LICENCES.
    """
    if name in OVERRIDES:
        return OVERRIDES[name][0]
    expression = metadata.get("License-Expression")
    prefix = "License :: OSI Approved :: "
    classifiers = [
        str(item).removeprefix(prefix)
        for item in metadata.get_all("Classifier", [])
        if str(item).startswith(prefix)
    ]
    stated = str(metadata.get("License") or "").strip()
    if expression is not None:
        licence, words = str(expression), str(expression)
        allowed = _expression_allowed(licence)
    elif classifiers:
        words = ", ".join(classifiers)
        licence = " AND ".join(sorted(CLASSIFIERS.get(item, item) for item in classifiers))
        allowed = all(item in CLASSIFIERS for item in classifiers)
    else:
        words = stated.splitlines()[0] if stated else ""
        licence = LICENCE_FIELDS.get(stated.lower(), "")
        allowed = bool(licence)
    if allowed:
        return licence
    what = f"has the licence {words!r}" if words else "states no licence"
    raise UserError(f"{name} {what}, which is not on the list of licences that text is taken under")


def _expression_allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with allowed licences alone (AND binds closer than OR)."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)

    def either() -> bool:
        result = both()
        while tokens and tokens[0].upper() == "OR":
            tokens.pop(0)
            # Both sides are read, whatever the first one says.
            result = both() or result
        return result

    def both() -> bool:
        result = one()
        while tokens and tokens[0].upper() == "AND":
            tokens.pop(0)
            result = one() and result
        return result

    def one() -> bool:
        token = tokens.pop(0) if tokens else ""
        if token == "(":
            result = either()
            return bool(tokens) and tokens.pop(0) == ")" and result
        if tokens and tokens[0].upper() == "WITH":
            # An exception gives permissions beside those of the licence.
            del tokens[:2]
        return token in ALLOWED_LICENCES

    result = either()
    return result and not tokens


def clean(data: bytes) -> str | None:
    """Give a file's text with plain line ends, or None when it is not UTF-8 text.

    Comments about licence and copyright at its beginning go: they are a few texts thousands of times, and
    would be most of what a model learns to start a file with. The summary names every package's licence.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = _SPACE_AT_END.sub("", text).strip("\n") + "\n"
    while (header := _HEADER.match(text)) and _HEADER_WORDS.search(header.group()):
        text = text[header.end() :]
    return text


def refusal(path: str, text: str) -> str | None:
    """Say why a text is not taken: a word for the summary, or None for a text that is taken."""
    size = len(text.encode())
    if size < _MIN_BYTES:
        return "short"
    if size > _MAX_BYTES:
        return "long"
    head = text[:600]
    if _GENERATED_NAME.search(path) or _GENERATED_TEXT.search(head):
        return "generated"
    lines = [line for line in text.split("\n") if line.strip()]
    if max(map(len, lines), default=0) > _MAX_LINE or sum(map(len, lines)) > _MAX_MEAN_LINE * len(lines):
        return "lines"
    if len(_DIGITS.findall(text)) > _MAX_DIGITS * len(text) or _LONG_LITERAL.search(text):
        return "data"
    if _SPECIAL_TOKEN.search(text):
        return "special tokens"
    if size - len(text) > _MAX_NOT_ASCII * size:
        return "alphabet"
    if len(lines) > 20 and len(set(lines)) < _MIN_DISTINCT_LINES * len(lines):
        return "repeats"
    return None


def line_hashes(text: str) -> list[bytes]:
    """Hashes of the lines that say something.

    They have 16 characters or more without indentation, and a letter. Comments and imports are left out: they
    are alike in much unrelated text.
    """
    found = []
    for line in text.split("\n"):
        bare = line.strip()
        if len(bare) < _MIN_LINE or bare.startswith(("#", "import ", "from ")):
            continue
        if any(map(str.isalpha, bare)):
            found.append(hashlib.blake2b(bare.encode(), digest_size=8).digest())
    return found


def read_wheel(path: Path) -> tuple[Package, list[Document], dict[str, int]]:
    """Read one wheel: its package, the documents that pass the filters, and counts of those that do not.

    Raises UserError when it cannot be read or its licence is not allowed.
    """
    dropped: dict[str, int] = {}
    documents = []
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            metadata = _metadata(wheel, path.name)
            name = re.sub(r"[-_.]+", "-", str(metadata["Name"])).lower()
            package = Package(
                name=name,
                version=str(metadata["Version"]),
                file=_file_name(path),
                sha256=hashlib.sha256(data).hexdigest(),
                licence=licence_of(metadata, name),
            )
            for member in sorted(wheel.namelist()):
                if not _wanted(member):
                    continue
                text = clean(wheel.read(member))
                reason = "encoding" if text is None else refusal(member, text)
                if text is not None and reason is None:
                    documents.append(Document(name, member, text))
                elif reason is not None:
                    dropped[reason] = dropped.get(reason, 0) + 1
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read the wheel {path}: {error}") from error
    return package, documents, dropped


def _metadata(wheel: zipfile.ZipFile, file: str) -> Message:
    for member in wheel.namelist():
        if member.count("/") == 1 and member.endswith(".dist-info/METADATA"):
            return BytesParser().parsebytes(wheel.read(member))
    raise UserError(f"{file} has no .dist-info/METADATA: it is not a wheel")


def _wanted(member: str) -> bool:
    path = PurePosixPath(member)
    parts = path.parts[:-1]
    if any(part in _VENDORED or part.endswith((".dist-info", ".data")) for part in parts):
        return False
    return path.suffix in _SUFFIXES


def wheels_below(paths: Iterable[Path]) -> list[Path]:
    """The wheels among files and folders, by file name. Raises UserError for a missing or empty one."""
    found: dict[str, Path] = {}
    for path in paths:
        inside = sorted(path.glob("*.whl")) if path.is_dir() else [path]
        if not inside or not all(item.is_file() for item in inside):
            raise UserError(f"no wheel at {path}: give .whl files or folders that hold some")
        found |= {_file_name(item): item for item in inside}
    return [found[name] for name in sorted(found)]


def _file_name(path: Path) -> str:
    """The wheel's own name: a Nix store path has a hash before it."""
    return re.sub(r"^[0-9a-z]{32}-", "", path.name)


def build(
    wheels: Sequence[Path],
    held_out: Iterable[str] = (),
    *,
    seed: int = SEED,
    package_bytes: int = PACKAGE_BYTES,
    total_bytes: int = TOTAL_BYTES,
) -> Corpus:
    """Make a corpus of wheels without what is in the texts `held_out`.

    Raises UserError when a wheel cannot be read, has no allowed licence, or is the second one of its package.
    """
    known = {item for text in held_out for item in line_hashes(text)}
    seen: set[bytes] = set()
    dropped: dict[str, int] = {}
    packages: dict[str, Package] = {}
    kept: list[Document] = []

    def drop(reason: str, count: int = 1) -> None:
        if count:
            dropped[reason] = dropped.get(reason, 0) + count

    def fits(document: Document) -> bool:
        # Spaces and line ends do not make another text.
        digest = hashlib.sha256("".join(document.text.split()).encode()).digest()
        if digest in seen:
            drop("copy")
            return False
        seen.add(digest)
        lines = line_hashes(document.text) if known else []
        if sum(line in known for line in lines) > HELD_OUT_SHARE * len(lines):
            drop("held out")
            return False
        return True

    for path in _progress(wheels, "reading wheels"):
        package, documents, refused = read_wheel(path)
        if package.name in packages:
            raise UserError(f"{package.name} comes twice: {packages[package.name].file} and {package.file}")
        packages[package.name] = package
        for reason, count in refused.items():
            drop(reason, count)
        fresh = [document for document in documents if fits(document)]
        chosen = _cut(sorted(fresh, key=lambda item: item.key(seed)), package_bytes)
        drop("package is full", len(fresh) - len(chosen))
        kept += chosen
    documents = _cut(sorted(kept, key=lambda item: item.key(seed)), total_bytes)
    # Like text side by side packs a fifth smaller; whoever trains shuffles anyway.
    documents = sorted(documents, key=lambda item: (item.package, item.path))
    drop("corpus is full", len(kept) - len(documents))
    for document in documents:
        packages[document.package].documents += 1
        packages[document.package].size += document.size
    return Corpus(documents, [packages[name] for name in sorted(packages)], dict(sorted(dropped.items())))


def _cut(documents: list[Document], limit: int) -> list[Document]:
    """The longest beginning of a list with at most `limit` bytes of text."""
    total = 0
    for number, document in enumerate(documents):
        total += document.size
        if total > limit:
            return documents[:number]
    return documents


def summary(corpus: Corpus) -> dict[str, object]:
    """What `corpus.json` says: totals, the hash of the text, and every package."""
    digest = hashlib.sha256()
    for document in corpus.documents:
        digest.update(document.line())
    return {
        "documents": len(corpus.documents),
        "bytes": sum(package.size for package in corpus.packages),
        "sha256": digest.hexdigest(),
        "left_out": corpus.dropped,
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "file": package.file,
                "sha256": package.sha256,
                "licence": package.licence,
                "documents": package.documents,
                "bytes": package.size,
            }
            for package in corpus.packages
        ],
    }


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write a file of documents, packed when its name ends in `.xz`. All of it or nothing."""

    # Preset 6 takes five times as long for a tenth less.
    packer = lzma.LZMACompressor(preset=2) if path.suffix == ".xz" else None
    lines = (document.line() for document in _progress(documents, f"writing {path.name}"))
    parts = [packer.compress(line) for line in lines] + [packer.flush()] if packer else list(lines)
    with replacing(path) as part:
        part.write_bytes(b"".join(parts))


def _progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar when someone watches."""
    if not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[Item] = tqdm(items, desc=what, dynamic_ncols=True)
    return bar


def run(
    wheels: Annotated[list[Path], Option(metavar="PATH", help=".whl files, or folders of them")],
    out: Annotated[Path, Option(metavar="FILE", help="file of documents to write (.jsonl or .jsonl.xz)")],
    held_out: Annotated[
        Path | None, Option(metavar="FILE", help="documents whose text must not be in it")
    ] = None,
    summary_file: Annotated[
        Path | None,
        Option("--summary", metavar="FILE", help="JSON file to write: packages, licences, hashes, sizes"),
    ] = None,
    package_bytes: Annotated[int, Option(metavar="N", help="most text of one package")] = PACKAGE_BYTES,
    total_bytes: Annotated[int, Option(metavar="N", help="most text of all packages")] = TOTAL_BYTES,
    seed: Annotated[int, Option(metavar="N")] = SEED,
) -> int:
    """Make the training or the held-out text from pinned packages, and say what it holds."""
    known = [] if held_out is None else [item.text for item in read_documents(held_out)]
    corpus = build(
        wheels_below(wheels), known, seed=seed, package_bytes=package_bytes, total_bytes=total_bytes
    )
    if not corpus.documents:
        raise UserError("no document of these wheels passed the filters")
    write_documents(out, corpus.documents)
    if summary_file is not None:
        write_json(summary_file, summary(corpus))
    size = sum(package.size for package in corpus.packages)
    counts = f"{len(corpus.documents)} documents of {len(corpus.packages)} packages"
    print(f"{out}: {counts}, {size} bytes")
    for reason, count in corpus.dropped.items():
        print(f"  left out: {count:>6} {reason}")
    return 0
