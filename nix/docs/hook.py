"""What docs/ needs beside mkdocs: the README as first page, links out of docs/, lists as GitHub reads them.

mkdocs calls the functions `on_…` by their names.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HOME = "index.md"
README = "README.md"

log = get_plugin_logger("gb10")


class Links(Treeprocessor):
    """Links as they stand in the repository, made the site's.

    Args:
        root: The checkout.
        docs: The name of its folder of pages.
        repository: Its address, or empty: then a link to a file of it becomes text with its path.
    """

    def __init__(self, root: Path, docs: str, repository: str) -> None:
        super().__init__()
        self.root = root
        self.docs = docs
        self.repository = repository.rstrip("/")
        self.page = ""
        """The page that is rendered, by its path in the repository."""

    def run(self, root: Element) -> None:
        """Rewrites the links of one page. A file that is not there is a warning: it ends the build."""
        for link in root.iter("a"):
            parts = urlsplit(link.get("href", ""))
            if parts.scheme or parts.netloc or not parts.path:
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(self.page), parts.path))
            anchor = f"#{parts.fragment}" if parts.fragment else ""
            if path == README:
                link.set("href", HOME + anchor)
            elif path.startswith(f"{self.docs}/"):
                link.set("href", path.removeprefix(f"{self.docs}/") + anchor)
            elif path.startswith("..") or not (self.root / path).exists():
                log.warning("%s links to %s, which is not in the repository", self.page, path)
                _as_text(link, path)
            elif self.repository:
                link.set("href", f"{self.repository}/blob/HEAD/{path}{anchor}")
            else:
                _as_text(link, path)


def _as_text(link: Element, path: str) -> None:
    del link.attrib["href"]
    link.tag = "span"
    if path not in "".join(link.itertext()):
        where = SubElement(link, "code")
        where.text = path
        if len(link) > 1:
            link[-2].tail = f"{link[-2].tail or ''} ("
        else:
            link.text = f"{link.text or ''} ("
        where.tail = ")"


class Interrupting(Preprocessor):
    """A blank line between a paragraph and a list or a table: GitHub needs none, Python-Markdown does."""

    _ITEM = re.compile(r"([-*+]|1[.)]) +\S")
    _RULE = re.compile(r" *\|?[ :|-]*-[ :|-]*\|[ :|-]*$")

    def run(self, lines: list[str]) -> list[str]:
        """The lines of a page, fenced code taken out."""
        out: list[str] = []
        listed = False
        for at, line in enumerate(lines):
            item = self._ITEM.match(line) is not None
            after_text = bool(out) and out[-1].strip() != ""
            heads_table = (
                at + 1 < len(lines)
                and "|" in line
                and self._RULE.match(lines[at + 1]) is not None
                and not line.startswith(" ")
            )
            if after_text and ((item and not listed) or heads_table):
                out.append("")
            if item:
                listed = True
            elif not line.strip():
                listed = False
            out.append(line)
        return out


class AsInTheRepository(Extension):
    """Both of the above."""

    def __init__(self, links: Links) -> None:
        super().__init__()
        self.links = links

    def extendMarkdown(self, md: Markdown) -> None:
        """Puts them in: before mkdocs looks at the links, after fenced code has gone and before HTML is."""
        self.links.md = md
        md.treeprocessors.register(self.links, "gb10-links", 5)
        md.preprocessors.register(Interrupting(md), "gb10-interrupting", 22)


_links: list[Links] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the extension to Markdown's."""
    docs = Path(config.docs_dir)
    _links[:] = [Links(docs.parent, docs.name, config.repo_url or "")]
    # mkdocs says that these are names; it hands them to Markdown, which takes extensions too.
    config.markdown_extensions.append(AsInTheRepository(_links[0]))  # type: ignore[arg-type]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The README as the first page."""
    text = (Path(config.docs_dir).parent / README).read_text(encoding="utf-8")
    files.append(File.generated(config, HOME, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Notes which page comes next."""
    del files
    name = page.file.src_uri
    _links[0].page = README if name == HOME else f"{Path(config.docs_dir).name}/{name}"
    return markdown
