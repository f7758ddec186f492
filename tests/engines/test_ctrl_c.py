"""Ctrl-C while it is taken: from every handler that raises KeyboardInterrupt, and from no other."""

import signal

import pytest

from conformer_fast.engines import ctrl_c


def a_program(*_) -> None:
    """A handler of the program's."""


@pytest.mark.parametrize(("raising", "pressed"), [(True, ["here"]), (False, [])])
def test_handlers_that_raise_are_replaced_for_the_time(raising, pressed, monkeypatch):
    monkeypatch.setattr(ctrl_c, "RAISING", {signal.default_int_handler, *([a_program] if raising else [])})
    seen, before = [], signal.signal(signal.SIGINT, a_program)
    try:
        with ctrl_c.ctrl_c_calls(lambda: seen.append("here")):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is a_program
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == pressed
