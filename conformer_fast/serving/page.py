"""The page at /: one file, and headers by which a browser loads and asks nothing else than this server."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FILE = Path(__file__).with_name("page.html")
HEADERS = {
    "Cache-Control": "no-cache",  # after an update the browser has the new one
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page() -> tuple[str, dict[str, str]]:
    """The text, and its headers: what is written in the file may run there, and no other script or style."""
    text = FILE.read_text(encoding="utf-8")
    rules = {
        "default-src": "'none'",
        "script-src": _hash(text, "script"),
        "style-src": _hash(text, "style"),
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # no text becomes elements
        "trusted-types": "'none'",
    }
    return text, HEADERS | {"Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in rules.items())}


def _hash(text: str, tag: str) -> str:
    """Of what is in the file's only element of this name, as the policy names it."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
