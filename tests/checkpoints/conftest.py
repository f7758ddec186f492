"""A server of weights, in place of the publisher's."""

import hashlib

import pytest
from weights_site import CONTENT, NAME, Site

from conformer_fast.checkpoints import download


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site()
    monkeypatch.setitem(download.FILES, "tiny-p16", NAME)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", site.url + "/")
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE", raising=False)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights" / NAME


@pytest.fixture
def part(target):
    target.parent.mkdir(parents=True)
    return target.with_name(NAME + ".part")
