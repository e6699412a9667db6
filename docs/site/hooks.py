"""Hooks of MkDocs: the site is laid out as the repository is, so a link that works in a checkout works on the site.

README.md and the other pages of the repository's root are pages, README.md the first. Any other file that a page links
to is copied. A list may follow a line of text, as it may there.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s#?:]+)")
ITEM = re.compile(r"(?:[-*+]|1\.) ")


class Lists(Extension, Preprocessor):
    """A blank line, which Markdown of Python wants before a list, after a paragraph."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - its name there
        """Once fenced code is out of the way."""
        md.preprocessors.register(self, "lists", 15)

    def run(self, lines: list[str]) -> list[str]:
        """The page's lines."""
        apart = []
        for before, line in zip(["", *lines], lines, strict=False):
            if ITEM.match(line) and before[:1].strip() and not ITEM.match(before):
                apart.append("")
            apart.append(line)
        return apart


def on_config(config: MkDocsConfig) -> None:
    """Pages and docstrings are read with this extension, too."""
    config.markdown_extensions.append(Lists())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Of docs/ each file under that name, the pages of the root beside them, and the theme's own files."""
    pages = [File(page.name, str(ROOT), config.site_dir, config.use_directory_urls) for page in ROOT.glob("*.md")]
    own = [file for file in files if file.src_dir == config.docs_dir]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    docs = [File(f"docs/{file.src_uri}", str(ROOT), config.site_dir, config.use_directory_urls) for file in own]
    return Files([*pages, *docs, *theme])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """The files of the repository that this page links to."""
    for link in LINK.findall(markdown):
        name = normpath(str(PurePosixPath(page.file.src_uri).parent / link))
        if not name.startswith("..") and name not in files.src_uris and (ROOT / name).is_file():
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
