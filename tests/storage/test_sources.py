"""The hash of sources: any change of a module is another, and none is None."""

from conformer_fast.storage.sources import sources_sha256


def test_sources(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "a.py").write_text("a = 1")
    first = sources_sha256([one, other])
    assert first == sources_sha256([one, other])
    (one / "notes.txt").write_text("no module")
    assert sources_sha256([one, other]) == first
    (other / "a.py").write_text("a = 2")
    second = sources_sha256([one, other])
    (other / "a.py").rename(other / "b.py")
    assert len({first, second, sources_sha256([one, other])}) == 3
    (other / "b.py").unlink()
    assert sources_sha256([one, other]) is None
