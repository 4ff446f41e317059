"""Servers of the tests, at work in a thread of this process."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_work(server: http.server.HTTPServer) -> Iterator[None]:
    """Let a server answer while the block runs, and close it."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
