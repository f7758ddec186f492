"""How much the tests of tests/hostile try: as much as CI has time for, or EFFORT times that (`make hostile`)."""

import os

EFFORT = int(os.environ.get("EFFORT", "1"))
