"""The site that `make docs` builds: every page and public name is there, no link is broken, no other host is asked, and
it can be read on a phone and reached by keyboard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest

import conformer_fast as cf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
BESIDE = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
PHONE = {"width": 360, "height": 740}


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site))
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """links: where each leads; loaded: what a browser fetches to show the page; ids: places in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link":
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset") if name in given]


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {file.stem: Page(file) for file in site.glob("*.html") if file.stem != "404"}


def test_every_page_is_there(pages):
    assert pages.keys() == {file.stem for file in (ROOT / "docs").glob("*.md")} | set(BESIDE)


def test_no_link_within_is_broken(site, pages):
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = site / unquote(parts.path) if parts.path else site / f"{name}.html"
            assert target.exists(), f"{name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target.stem].ids, f"{name}: {link}"


def test_no_other_host_is_asked(site, pages):
    assert [link for page in pages.values() for link in page.loaded if urlsplit(link).netloc] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_every_public_name_is_in_the_reference(pages):
    shown = re.findall(r"^::: (\S+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(
        [f"conformer_fast.{name}" for name in cf.__all__] + ["conformer_fast.mmdet.ConformerFast"]
    )
    assert set(shown) <= pages["reference"].ids


def test_what_is_wrong_fails_the_build(tmp_path):
    """A page that is not there, a place that is none of a page, a name that is none of the package."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "docs", tree / "docs")
    for name in ("mkdocs.yml", *(f"{name}.md" for name in BESIDE)):
        shutil.copy(ROOT / name, tree)
    for name in ("conformer_fast", "engines", "kernels"):
        (tree / name).symlink_to(ROOT / name)
    with (tree / "docs" / "faq.md").open("a") as page:
        page.write("\n[a](no-page.md) [b](accuracy.md#no-place) [c](../docs/no-other.md)\n")
    done = build(tree, tmp_path / "site")
    assert done.returncode == 1
    for link in ("no-page.md", "#no-place", "no-other.md"):
        assert re.search(f"WARNING.*faq.md.*{link}", done.stderr), link

    with (tree / "docs" / "reference.md").open("a") as page:
        page.write("\n::: conformer_fast.no_such_name\n")
    done = build(tree, tmp_path / "site")
    assert done.returncode == 1
    assert "no_such_name" in done.stderr


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


needs_browser = pytest.mark.skipif(bool(browser.missing()) and "CI" not in os.environ, reason=str(browser.missing()))


@needs_browser
def test_every_page_is_readable_on_a_phone(address, pages):
    """Nothing but wide tables and code scrolls sideways, each by itself."""
    with browser.launched() as opened:
        shown = opened.new_page(viewport=PHONE)
        asked = []
        shown.on("request", lambda request: asked.append(request.url))
        for name in pages:
            shown.goto(f"{address}/{name}.html")
            wide = shown.evaluate("document.documentElement.scrollWidth")
            assert wide <= PHONE["width"], name
            shown.evaluate("scrollTo(100, 0)")
            assert shown.evaluate("scrollX") == 0, name
        assert {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}


@needs_browser
def test_a_page_is_reached_by_keyboard(address):
    with browser.launched() as opened:
        shown = opened.new_page()
        shown.goto(f"{address}/index.html")
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.textContent").strip() == "Skip to content"
        shown.keyboard.press("Enter")
        assert urlsplit(shown.url).fragment == "quickstart"


@needs_browser
def test_it_is_searched_by_keyboard(address):
    with browser.launched() as opened:
        shown = opened.new_page()
        shown.goto(f"{address}/index.html")
        shown.keyboard.press("/")
        shown.keyboard.type("probabilities in 8 bits")
        first = shown.wait_for_selector(".md-search-result__link")
        target = first.get_attribute("href")
        shown.keyboard.press("ArrowDown")
        shown.keyboard.press("Enter")
        shown.wait_for_url(lambda url: url.startswith(target))
