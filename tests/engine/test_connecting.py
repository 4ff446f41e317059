"""Clusters that cannot be reached."""

from __future__ import annotations

import signal
import threading

import pytest
from distributed.comm import CommClosedError
from tornado.util import TimeoutError as TornadoTimeoutError

from geoseg.engine.cluster import connected
from geoseg.engine.predict import Options
from geoseg.errors import RunError


def test_a_cluster_that_cannot_be_reached_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left behind, the loop of such a client is closed by the collector, at a moment that may be the wrong one."""
    monkeypatch.setattr("geoseg.engine.cluster._REACH_TIMEOUT", 1)
    before = set(threading.enumerate())
    for _ in range(2):
        with pytest.raises(RunError, match="cannot be reached"), connected(Options(scheduler="tcp://127.0.0.1:9")):
            pass
    assert not [each.name for each in set(threading.enumerate()) - before if each.name == "IO loop"]


def test_event_loops_tell_of_faults_but_not_of_lost_connections(caplog: pytest.LogCaptureFixture) -> None:
    """A message that is on its way when a scheduler ends fails in a callback, with a traceback that helps nobody."""
    done = threading.Event()

    def fails(error: Exception) -> None:
        raise error

    with connected(Options()) as crew:
        crew.client.loop.add_callback(fails, CommClosedError("already closed"))
        crew.client.loop.add_callback(fails, TornadoTimeoutError("Timeout"))
        crew.client.loop.add_callback(fails, ValueError("a fault"))
        crew.client.loop.add_callback(done.set)
        assert done.wait(10)
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == ["a fault"]


def test_ctrl_c_before_a_call_is_taken_up_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The loop is held up, so that what is interrupted has not begun there."""
    held, done = threading.Event(), threading.Event()
    interrupt = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with connected(Options()) as crew:
            crew.client.loop.add_callback(held.wait, 20)
            interrupt.start()
            with pytest.raises(KeyboardInterrupt):
                crew.client.scheduler_info()
            crew.client.loop.add_callback(done.set)
            held.set()
            assert done.wait(10)
    finally:
        interrupt.cancel()
        signal.signal(signal.SIGINT, before)
    assert not [record.exc_info for record in caplog.records if record.exc_info]


def test_this_process_does_two_parts_at_a_time() -> None:
    with connected(Options()) as crew:
        assert (crew.threads, crew.processes) == (2, 1)
