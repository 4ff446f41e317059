"""A map served to this machine alone, for browsers that do not open files."""

from __future__ import annotations

import http.server
import urllib.parse
from functools import partial
from pathlib import Path
from typing import Any

_HOST = "127.0.0.1"


class MapServer(http.server.ThreadingHTTPServer):
    """A server of one page, and of what lies in its folder ``tiles`` if it has one; on loopback, at a free port."""

    daemon_threads = True

    def __init__(self, page: Path) -> None:
        """Begin to listen; ``serve_forever`` answers."""
        page = page.absolute()
        super().__init__((_HOST, 0), partial(_Handler, page, directory=str(page.parent)))
        self.url = f"http://{_HOST}:{self.server_address[1]}/{urllib.parse.quote(page.name)}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Answers for the page and its tiles, to who asks for this machine by its own name."""

    def __init__(self, page: Path, *args: Any, **more: Any) -> None:
        self._page = page
        super().__init__(*args, **more)

    def send_head(self) -> Any:
        """Answer 404 to all else: other files of the folder are nobody's business, and other sites' scripts neither."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in {f"{_HOST}:{port}", f"localhost:{port}"}:
            self.send_error(404)
            return None
        wanted = Path(self.translate_path(self.path)).resolve()
        tiles = (self._page.parent / "tiles").resolve()
        if wanted != self._page.resolve() and not (wanted.is_file() and wanted.is_relative_to(tiles)):
            self.send_error(404)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what a browser asks for is of no interest."""
