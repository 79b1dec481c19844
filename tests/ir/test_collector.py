"""The collector rests while a graph is built, and is as it was afterwards."""

import gc

import pytest
from graphwright.ir.collector import collector_paused, without_collector


def test_it_is_as_it_was():
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_does_not_leave_it_off():
    @without_collector
    def fail(text: str) -> None:
        assert not gc.isenabled()
        raise ValueError(text)

    with pytest.raises(ValueError, match="broken"):
        fail("broken")
    assert gc.isenabled()


def test_who_turned_it_off_finds_it_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
