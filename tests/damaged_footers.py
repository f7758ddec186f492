"""Reads a parquet file again and again, each time with another byte of its footer changed: what ends the interpreter
ends this process, run by tests/datasets/test_hostile_data.py.

    python damaged_footers.py FILE
"""

import sys
import warnings
from contextlib import suppress
from pathlib import Path

from conformer_fast.datasets.dataset import open_dataset, open_pictures
from conformer_fast.errors import DatasetError

warnings.simplefilter("ignore")
file = Path(sys.argv[1])
whole = file.read_bytes()
footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for place in range(footer, len(whole) - 8):
    content = bytearray(whole)
    content[place] ^= 1
    file.write_bytes(content)
    for opened in (open_dataset, open_pictures):
        with suppress(DatasetError):
            opened(file).read(0)
