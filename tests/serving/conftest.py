import pytest

import conformer_fast as cf


@pytest.fixture(scope="session")
def model():
    """The packaged digits model, as PyTorch computes it."""
    return cf.compile(cf.create_model("digits", weights="packaged"), backend="reference")
