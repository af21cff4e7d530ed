"""Fixtures: a loopback file server that can misbehave, and the shared data sets if the machine has them."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def shared():
    """A function that returns the path of a shared data file, or skips the test and names the absent file."""

    def find(name):
        if not (SHARED / name).exists():
            pytest.skip(f"{SHARED / name} is not on this machine")
        return SHARED / name

    return find


@pytest.fixture(autouse=True)
def no_outside(monkeypatch, tmp_path):
    """Keeps every test from finding the machine's own data, writing to its cache or using a proxy."""
    for name in ("IMNET_DATA", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class FileServer:
    """Serves ``files`` over HTTP with byte ranges; if ``behave(handler, body, start)`` is true, it has answered."""

    def __init__(self):
        self.files, self.requests, self.behave = {}, [], None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler):
        body = self.files.get(handler.path.lstrip("/"))
        span = handler.headers.get("Range")
        self.requests.append((handler.path, span))
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        if self.behave is not None and self.behave(handler, body, start):
            return
        if body is None:
            handler.send_error(404)
            return
        send(handler, body, start)


def send(handler, body, start, *, status=None, length=None):
    """Sends ``body`` from byte ``start``; ``status`` and ``length`` override the correct status and Content-Length."""
    handler.send_response(status or (206 if start else 200))
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start if length is None else length))
    handler.end_headers()
    handler.wfile.write(body[start:] if length is None else body[start : start + length])


@pytest.fixture
def server():
    made = FileServer()
    yield made
    made.server.shutdown()
    made.server.server_close()
