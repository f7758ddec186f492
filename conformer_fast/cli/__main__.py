"""python -m conformer_fast.cli is conformer-fast."""

import sys

from .main import main

sys.exit(main())
