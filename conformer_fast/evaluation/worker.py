"""How a decoding process starts: it ends with its parent, whose output it holds open, also while it imports PyTorch.

Nothing here may import that, or what does.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection


def work(pipe: Connection) -> None:
    """Decodes what comes through the pipe."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from .decode import serve

    serve(pipe)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
