"""Web servers on this machine that send files whole, in parts, badly, or not at all."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranges(BaseHTTPRequestHandler):
    """Send files of a folder, and parts of them, as object stores do."""

    folder: Path
    in_parts = True
    failures: list[str]
    """What to do instead, request by request: "503", or "cut" the connection half-way."""
    requests: list[tuple[str, str | None]]
    """Path and range of every request."""

    @property
    def name(self) -> str:
        """The file of a request, without the signature of its address."""
        return self.path.lstrip("/").partition("?")[0]

    def do_GET(self) -> None:
        file = self.folder / self.name
        requested = self.headers.get("Range")
        self.requests.append((self.path, requested))
        failure = self.failures.pop(0) if self.failures else ""
        if not file.is_file() or failure == "503":
            self.send_error(503 if failure else 404)
            return
        size = file.stat().st_size
        begin, end = 0, size - 1
        if requested and self.in_parts:
            first, _, last = requested.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or size), size - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        with file.open("rb") as opened:
            opened.seek(begin)
            data = opened.read(end + 1 - begin)
        self.wfile.write(data[: len(data) // 2] if failure == "cut" else data)

    def do_HEAD(self) -> None:
        file = self.folder / self.name
        if not file.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.send_header("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Dripping(Ranges):
    """Send one byte at a time, or without an end, as `how` says ("body FILE")."""

    how = ""

    def do_GET(self) -> None:
        if not self.name.endswith(self.how.partition(" ")[2]):
            super().do_GET()
            return
        try:
            if self.how.startswith("headers"):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            else:
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            for _ in range(10_000):
                if self.how.startswith("endless"):
                    self.wfile.write(b" " * 2**20)
                else:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
        except OSError:  # the client closed the connection
            pass


@contextmanager
def serving(kind: type[Ranges], folder: Path, **how: object) -> Iterator[tuple[str, type[Ranges]]]:
    """Serve a folder; the address, and the class that answers."""
    settings = {"folder": folder, "failures": [], "requests": [], **how}
    handler = type("Handler", (kind,), settings)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        web.daemon_threads, web.block_on_close = True, False
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}", handler
        finally:  # else it polls a closed socket, for ever
            web.shutdown()
            thread.join()
