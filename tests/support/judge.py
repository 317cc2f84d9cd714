"""A small server with OpenAI's interface, which answers what a function says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def judging(answer: Callable[[dict[str, Any]], str | tuple[int, bytes]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves while the block runs.

    Args:
        answer: is given the request's JSON, with its headers as "headers"; the text of the answer, or
            a status and what is sent with it.

    Yields:
        Where the interface begins, and the list of all requests so far.
    """
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "headers": dict(self.headers)})
            said = answer(asked[-1])
            status, data = said if isinstance(said, tuple) else (200, reply(said))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/v1/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(text: str) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
