"""Tests that start Ray, which takes all cores for minutes: `make cluster` runs them, one after another."""

import os
from importlib.util import find_spec

import pytest

by_ray = pytest.mark.skipif(
    not (os.environ.get("BY_RAY") and find_spec("ray")), reason="starts Ray: `make cluster` runs it"
)
