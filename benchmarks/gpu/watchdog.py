"""Reads which process groups come and go, "+N" or "-N" a line, until whoever writes that is gone. Kills those left."""

import os
import signal
import sys
from contextlib import suppress

groups: set[int] = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    with suppress(ProcessLookupError, PermissionError):  # the latter: the number has become another user's
        os.killpg(group, signal.SIGKILL)
