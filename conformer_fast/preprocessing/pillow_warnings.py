"""What Pillow says of damaged metadata, which change no pixel: it names no picture."""

from __future__ import annotations

import warnings

READERS = r"PIL\.\w+ImagePlugin"  # not PIL.Image, which warns of pictures that may be too large


def ignore_damaged_metadata() -> None:
    """Leaves these warnings out from now on, in every thread: for processes and commands of our own alone."""
    warnings.filterwarnings("ignore", module=READERS)
