"""Python imports this at its start where tests/stand_in is in PYTHONPATH: every process then sees a GPU."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # fake_cuda

import stand_in

stand_in.install()
