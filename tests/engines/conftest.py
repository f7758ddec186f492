"""What the tests of engines on a pretended GPU share."""

import gc

import pytest


@pytest.fixture(scope="module")
def _quick_collections():
    """Python's collector leaves alone what was there before these tests."""
    gc.freeze()
    yield
    gc.unfreeze()
