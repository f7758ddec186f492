"""python -m conformer_fast.cli is conformer-fast."""

import sys

from .entry import run

sys.exit(run())
