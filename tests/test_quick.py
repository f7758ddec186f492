"""What `make quick` and `make test` run and leave out."""

from __future__ import annotations

from types import SimpleNamespace

from quick import HERE, LEFT_OUT, few_cases, is_left_out


def test_what_is_left_out_is_there():
    """A file that got another name would run again."""
    assert [name for name in LEFT_OUT if not (HERE / name).exists()] == []
    assert is_left_out(HERE / "cli")
    assert not is_left_out(HERE / "model")


def test_few_cases_of_what_is_not_slow():
    def item(file, name, slow=False):
        return SimpleNamespace(path=file, cls=None, originalname=name, get_closest_marker=lambda mark: slow)

    items = [item("a", "one"), item("a", "one"), item("b", "one"), item("b", "two", slow=True), item("b", "three")]
    assert [items.index(found) for found in few_cases(items, 1)] == [0, 2, 4]
    assert [items.index(found) for found in few_cases(items, 2)] == [0, 1, 2, 4]
