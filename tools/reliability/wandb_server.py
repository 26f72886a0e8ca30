"""A W&B server that does not do its work: it refuses, never answers, or answers 500."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Broken(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        return None


@contextmanager
def server(kind: str) -> Iterator[dict[str, str]]:
    """Environment variables that send wandb there, logged in; `kind` is `refuses`, `hangs` or `answers 500`."""
    if kind == "answers 500":
        httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try:
            yield _login(httpd.server_address[1])
        finally:
            httpd.shutdown()
            httpd.server_close()
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "hangs":
            # Connections are made by the system, and nobody reads from them.
            taken.listen(64)
        yield _login(taken.getsockname()[1])


def _login(port: int) -> dict[str, str]:
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
