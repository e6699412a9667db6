"""The docs site is built without a warning, and reads nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from runyard.config.schema import Config
from tests.support.settings import ROOT

LOADS = {"src", "srcset", "poster", "data"}  # attributes of which a browser loads the file; of a link href


class References(HTMLParser):
    """The addresses in a page: what a browser ``loaded`` by itself, and all of which a file must be there."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.all: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in LOADS or (tag == "link" and name == "href")):
                self.loaded.append(value)
            if value and name in (*LOADS, "href"):
                self.all.append(value)


def from_elsewhere(page: str) -> list[str]:
    """What this page, or style sheet, loads from another machine."""
    loaded = [*References(page).loaded, *re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", page)]
    return [address for address in loaded if re.match(r"(?:\w+:)?//", address)]


def dead(page: Path, site: Path) -> list[str]:
    """References of this page to files that the site lacks."""
    paths = [re.split("[?#]", address)[0] for address in References(page.read_text()).all if ":" not in address]
    return [path for path in paths if path and not (page.parent / unquote(path)).resolve().is_file()]


def documentation(cls: type = Config) -> Iterator[str]:
    """What is said of each setting."""
    for field, hint in zip(dataclasses.fields(cls), typing.get_type_hints(cls).values(), strict=True):
        if dataclasses.is_dataclass(hint):
            yield from documentation(typing.cast(type, hint))
        else:
            yield field.metadata["setting"].doc.replace("`", "")


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def pages(site: Path) -> list[Path]:
    return [page for page in site.rglob("*.html") if page.name != "404.html"]  # whose paths are a server's


def test_the_site_is_built_without_a_warning_and_is_whole(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages(tmp_path)}
    styles = [*tmp_path.rglob("*.css")]
    assert styles
    assert [found for file in (*pages(tmp_path), *styles) for found in from_elsewhere(file.read_text())] == []
    assert {page.name: lost for page in pages(tmp_path) if (lost := dead(page, tmp_path))} == {}
    shown = unescape(re.sub(r"<[^>]+>", "", (tmp_path / "docs" / "api.html").read_text()))
    assert [doc for doc in documentation() if doc not in shown] == []


def test_what_is_wrong_with_a_page_is_seen(tmp_path: Path) -> None:
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    shutil.copytree(ROOT / "docs", checkout / "docs")
    for name in ("mkdocs.yml", *(page.name for page in ROOT.glob("*.md"))):
        shutil.copy(ROOT / name, checkout)
    for name in ("src", "cluster", "slurm", "LICENSE"):
        (checkout / name).symlink_to(ROOT / name)
    with (checkout / "docs" / "sweeps.md").open("a") as page:
        page.write(
            '\n[a](nowhere.md) [b](clusters.md#nowhere) [c](../src) <img src="nowhere.png">\n\nText:\n- an item\n'
        )
    (checkout / "docs" / "lost.md").write_text("# In no menu\n")
    config = (checkout / "mkdocs.yml").read_text()
    (checkout / "mkdocs.yml").write_text(re.sub(r".*(font: false|settings\.py).*\n", "", config))
    built = build(checkout, site)
    assert built.returncode == 1
    for name in ("'nowhere.md'", "'clusters.md#nowhere'", "'../src'", "docs/lost.md"):
        assert name in built.stdout + built.stderr
    assert dead(site / "docs" / "sweeps.html", site) == ["nowhere.md", "../src", "nowhere.png"]
    assert "<li>an item</li>" in (site / "docs" / "sweeps.html").read_text()
    assert any("fonts.googleapis.com" in address for address in from_elsewhere((site / "index.html").read_text()))
    shown = unescape(re.sub(r"<[^>]+>", "", (site / "docs" / "api.html").read_text()))
    assert [doc for doc in documentation() if doc not in shown] != []


def test_a_style_that_loads_from_elsewhere_is_seen() -> None:
    assert from_elsewhere('@import "https://a/b.css"; body { background: url(//c/d.png) url(e.png) }') == [
        "https://a/b.css",
        "//c/d.png",
    ]
