"""A server in front of an S3 server that fails as it is told to."""

from __future__ import annotations

import http.client
import http.server
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import urlsplit

from tests.serving import at_work


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on.

    ``fault`` gives, for method and path, what goes wrong: ``busy`` (503), ``drop`` (the connection is closed before the
    request is passed on), ``mute`` (it is passed on, and closed without the answer), ``deaf`` (its conditions are not
    passed on), or None.  Its clock is ``skew_s`` seconds ahead of that of the server behind.
    """

    def __init__(self, server: str) -> None:
        self.behind = urlsplit(server).netloc
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.skew_s = 0
        self.asked: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def proxied(server: str) -> Iterator[Proxy]:
    """Yield a proxy at work."""
    proxy = Proxy(server)
    with at_work(proxy):
        yield proxy


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *args: object) -> None:
        pass

    def _pass(self) -> None:
        body = self._body()
        self.server.asked.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        if fault == "busy":
            self.send_error(503)
            return
        if fault == "drop":
            self._hang_up()
            return
        behind = http.client.HTTPConnection(self.server.behind, timeout=60)
        left_out = {"transfer-encoding", "content-length", "expect", "connection"}
        left_out |= {"if-match", "if-none-match"} if fault == "deaf" else set()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        behind.request(self.command, self.path, body=body, headers=headers)
        answer = behind.getresponse()
        data = answer.read()
        behind.close()
        if fault == "mute":
            self._hang_up()
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in {"date", "last-modified"}:
                time = parsedate_to_datetime(value) + timedelta(seconds=self.server.skew_s)
                self.send_header(name, format_datetime(time, usegmt=True))
            elif name.lower() not in {"transfer-encoding", "content-length", "connection", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length", str(len(data))))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length) if length else None

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
