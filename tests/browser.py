"""A headless Chromium, driven by Playwright."""

import os
import shutil
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--use-fake-device-for-media-stream",)  # a camera that shows a test picture


def missing():
    """Why there is none here, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"Playwright is not here ({error}): pip install playwright"
    return None if executable() else f"there is no {NAMES[0]} here: make browser"


def executable():
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched():
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # where Chromium's does not work
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=[*OPTIONS, *root])
        try:
            yield browser
        finally:
            browser.close()
