"""Hooks of MkDocs: the site is laid out as the repository is, so a link that works in a checkout works on the site.

README.md and the other pages of the repository's root are pages, README.md the first. Any other file that a page links
to is copied.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s#?:]+)")


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
