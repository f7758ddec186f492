"""What mkdocs.yml hooks into the building of the site: pages that lie beside docs/, links into the tree, and the
package as the reference reads it."""

from __future__ import annotations

import posixpath
import re
from itertools import chain
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # at the top of the tree, where GitHub looks for them
PACKAGE = ROOT / "build" / "package" / "conformer_fast"
MAPPED = ("engines", "kernels")  # folders of the package that lie at the top of the tree
PICTURE = re.compile(
    r'<picture>\n<source media="[^"]+" srcset="([^"]+)">\n<img src="([^"]+)"([^>]*)>\n</picture>'
)  # as docs/drawing/embed.py writes it
LINK = re.compile(r"(?<!!)\[([^]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_startup(**_: object) -> None:
    """Puts the package together out of links, since its source is read from one folder, and not imported."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for link in PACKAGE.iterdir():
        if not link.exists():  # the file is gone, or the checkout has moved
            link.unlink()
    for part in chain((ROOT / "conformer_fast").iterdir(), (ROOT / name for name in MAPPED)):
        link = PACKAGE / part.name
        if not link.is_symlink():
            link.symlink_to(part)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in BESIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A link into the tree, which GitHub follows, leads to the page of that file; without one it is the file's name.
    Of two pictures the one for the site's own light or dark pages is shown, whatever the reader's system has."""
    folder = "" if page.file.src_uri in BESIDE else "docs"

    def on_site(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in BESIDE or (path.startswith("docs/") and not path.endswith(".py")):
            return f"[{text}]({path.removeprefix('docs/')}{anchor or ''})"
        return f"`{text}`" if re.fullmatch(r"[\w./-]+\.\w+", text) else text

    if not folder:
        markdown = re.sub(r'\b(src|srcset)="docs/', r'\1="', markdown)
    markdown = PICTURE.sub(r'<img src="\2#only-light"\3><img src="\1#only-dark"\3>', markdown)
    return LINK.sub(on_site, markdown)
