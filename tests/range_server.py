"""A server of a folder with range requests, which fails, stalls and cuts short on demand; for `io/test_remote.py`.

It runs in a process of its own, because GDAL may hold the lock of the interpreter while it waits for an answer.
"""

from __future__ import annotations

import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


class Handler(BaseHTTPRequestHandler):
    """Answers range requests; ``/=NAME`` sets the trouble, and ``/sent`` returns the number of bytes sent."""

    protocol_version = "HTTP/1.1"
    trouble, sent = "", 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = FOLDER / self.path.strip("/")
        if self.path.startswith("/="):
            Handler.trouble = self.path[2:]
            self.answer(200, b"ok", control=True)
        elif self.path == "/sent":
            self.answer(200, str(Handler.sent).encode(), control=True)
        elif not path.is_file():
            self.answer(404, b"")
        else:
            data = path.read_bytes()
            part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if part is None:
                self.answer(200, data, body=body)
            else:
                start, stop = int(part[1]), min(int(part[2] or len(data)) + 1, len(data))
                self.answer(206, data[start:stop], f"bytes {start}-{stop - 1}/{len(data)}", body)

    def answer(self, code: int, data: bytes, content_range: str = "", body: bool = True, control: bool = False) -> None:
        trouble = "" if control else Handler.trouble
        if trouble == "stall":
            time.sleep(6)
        if trouble == "error":
            code, data = 500, b""
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if not body:
            return
        part = data[: len(data) // 2] if trouble == "cut" else data
        Handler.sent += 0 if control else len(part)
        self.wfile.write(part)
        self.close_connection = part != data


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
